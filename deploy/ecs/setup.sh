#!/bin/sh
# The task, its schedule and its alarm, once; put your account, region, network and values into the JSON files first.
# The two roles, the cluster, the log group and the SNS topic must exist: docs/SCHEDULING.md says what they need.
# The files astra-token, box-secret and box-prune-secret in the working directory hold the secrets.
set -eu
for secret in astra-token box-secret box-prune-secret; do
  aws secretsmanager create-secret --name "astra-backup/$secret" --secret-string "file://$secret"
done
aws ecs register-task-definition --cli-input-json file://deploy/ecs/task-definition.json
aws scheduler create-schedule --cli-input-json file://deploy/ecs/schedule.json
aws events put-rule --name astra-backup-failed --event-pattern file://deploy/ecs/alarm-pattern.json
aws events put-targets --rule astra-backup-failed --targets "Id=sns,Arn=$ALARM_TOPIC_ARN"
