#!/bin/sh
# Everything that job.yaml and prune-job.yaml need, once. Run it in the repository, with PROJECT and REGION set:
#   PROJECT=my-project REGION=europe-west1 sh deploy/cloud-run/setup.sh
# The files astra-token, box-secret and box-prune-secret in the working directory hold the secrets. Put your values into
# the two jobs first.
set -eu
image="$REGION-docker.pkg.dev/$PROJECT/astra-backup/astra-backup:1.0.0"
account="astra-backup@$PROJECT.iam.gserviceaccount.com"
gcloud config set project "$PROJECT"
gcloud services enable run.googleapis.com cloudscheduler.googleapis.com secretmanager.googleapis.com \
  artifactregistry.googleapis.com cloudbuild.googleapis.com monitoring.googleapis.com

gcloud artifacts repositories create astra-backup --repository-format docker --location "$REGION"
gcloud builds submit --tag "$image" .

gcloud iam service-accounts create astra-backup
for secret in astra-token box-secret box-prune-secret; do
  gcloud secrets create "$secret" --data-file "$secret"
  gcloud secrets add-iam-policy-binding "$secret" --member "serviceAccount:$account" \
    --role roles/secretmanager.secretAccessor
done

for file in deploy/cloud-run/job.yaml deploy/cloud-run/prune-job.yaml; do
  sed -e "s/PROJECT/$PROJECT/g" -e "s/image: REGION/image: $REGION/" "$file" >job.yaml
  gcloud run jobs replace job.yaml --region "$REGION"
done
for job in astra-backup astra-prune; do
  gcloud run jobs add-iam-policy-binding "$job" --region "$REGION" --member "serviceAccount:$account" \
    --role roles/run.invoker
done

# The scheduler starts a run and does not wait for it; it repeats only a start that failed.
start() {
  gcloud scheduler jobs create http "$1" --location "$REGION" --schedule "$2" --time-zone Etc/UTC \
    --uri "https://run.googleapis.com/v2/projects/$PROJECT/locations/$REGION/jobs/$1:run" \
    --http-method POST --oauth-service-account-email "$account" --max-retry-attempts 3
}
start astra-backup '17 3 * * *'
start astra-prune '17 10 * * *'

# Fires when an execution failed. Add a notification channel: gcloud beta monitoring channels list
gcloud monitoring policies create --policy-from-file deploy/cloud-run/alert-policy.json

# A run right now, to see it work.
gcloud run jobs execute astra-backup --region "$REGION" --wait
