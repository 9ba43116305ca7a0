#!/bin/sh
# After setup.sh: several tasks in place of one. Run it in the repository, and again after each change of shards.sh:
#   PROJECT=my-project REGION=europe-west1 sh deploy/cloud-run/tasks-setup.sh
# The schedules, the alert and the service account of setup.sh stay: the two jobs keep their names.
set -eu
account="astra-backup@$PROJECT.iam.gserviceaccount.com"
gcloud config set project "$PROJECT"

gcloud secrets describe astra-shards >/dev/null 2>&1 ||
  gcloud secrets create astra-shards --replication-policy automatic
gcloud secrets versions add astra-shards --data-file deploy/shards.sh
gcloud secrets add-iam-policy-binding astra-shards --member "serviceAccount:$account" \
  --role roles/secretmanager.secretAccessor

for file in deploy/cloud-run/tasks-job.yaml deploy/cloud-run/prune-tasks-job.yaml; do
  sed -e "s/PROJECT/$PROJECT/g" -e "s/image: REGION/image: $REGION/" "$file" >job.yaml
  gcloud run jobs replace job.yaml --region "$REGION"
done

# Each shard checks its connections, its folder and its rights; no document is read, and nothing is left behind.
gcloud run jobs execute astra-backup --region "$REGION" --args astra_backup.py,--check --wait
