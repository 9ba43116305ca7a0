#!/bin/sh
# One shard of a backup that is too large for one container: SHARD=0 sh deploy/shards.sh SCRIPT OPTIONS…
#
# A shard is a keyspace, or some collections of one, with a Box folder of its own. Kubernetes and Cloud Run give each
# container its number; the other variables are those of any backup. Change the table below; docs/SCALE.md says more.
set -eu
SHARD="${SHARD:-${JOB_COMPLETION_INDEX:-${CLOUD_RUN_TASK_INDEX:-}}}"
case "$SHARD" in
0) keyspace=shop             folder=YOUR_BOX_FOLDER_0 only='' ;;
1) keyspace=default_keyspace folder=YOUR_BOX_FOLDER_1 only='--collection docs' ;;
2) keyspace=default_keyspace folder=YOUR_BOX_FOLDER_2 only='--collection images --collection pages' ;;
# The last shard of a keyspace takes what the others leave: a new collection is not forgotten.
3) keyspace=default_keyspace folder=YOUR_BOX_FOLDER_3 only='--exclude docs --exclude images --exclude pages' ;;
*) echo "There is no shard '$SHARD': set SHARD to the number of a line in $0." >&2 && exit 1 ;;
esac
export ASTRA_DB_KEYSPACE="$keyspace" BOX_FOLDER_ID="$folder" BACKUP_OUTPUT_DIR="${BACKUP_OUTPUT_DIR:-backups}/$SHARD"
PATH="$PWD/.venv/bin:$PATH" # where `make install` puts it; the image has none
[ "${1:-}" = astra_backup.py ] || only='' # a restore takes the whole snapshot
# shellcheck disable=SC2086 # several options; the names of collections have no spaces
exec python "$@" $only
