#!/bin/sh
# Back up a domain through the REST API.
#   export VIRTVAULT_URL=http://127.0.0.1:5555     # where Flower is, with its url_prefix
#   export VIRTVAULT_TOKEN=vv_…                    # virtvault token add NAME --role operator
#   sh rest.sh DOMAIN
set -eu

api() {
    curl --silent --show-error --header "Authorization: Bearer $VIRTVAULT_TOKEN" "$@"
}

# The header makes it one task, however often it is sent: after a time-out, send it again.
task=$(cat /proc/sys/kernel/random/uuid)
api --fail-with-body --header "Idempotency-Key: $task" --json "{\"domain\": \"$1\"}" \
    "$VIRTVAULT_URL/v1/backups"
echo

# Answers when the task has ended, after 60 seconds at the latest.
while answer=$(api --fail-with-body "$VIRTVAULT_URL/v1/tasks/$task/wait?seconds=60"); do
    case $answer in
    *'"state": "SUCCESS"'*) break ;;
    *'"state": "PENDING"'* | *'"state": "STARTED"'*) ;;
    *) echo "$answer" >&2 && exit 1 ;;
    esac
done
echo "$answer"

api --fail-with-body --get --data-urlencode "domain=$1" "$VIRTVAULT_URL/v1/points"
echo
