#!/bin/sh
# Back up a domain through Flower's own task API. It asks for Flower's password and for nothing
# else, so it works only where Flower listens on loopback; rest.sh is the way for everybody.
#   export FLOWER_URL=http://127.0.0.1:5555
#   export FLOWER_BASIC_AUTH=operator:PASSWORD     # as the Flower role has it
#   sh flower_api.sh DOMAIN
set -eu

flower() {
    curl --silent --show-error --fail-with-body --user "$FLOWER_BASIC_AUTH" "$@"
}

# The state of a task and its result, once it has ended.
ended() {
    while answer=$(flower "$FLOWER_URL/api/task/result/$1"); do
        case $answer in
        *'"state": "SUCCESS"'*) echo "$answer" && return ;;
        *'"state": "PENDING"'* | *'"state": "STARTED"'*) sleep 1 ;;
        *) echo "$answer" >&2 && return 1 ;;
        esac
    done
    return 1
}

task=$(cat /proc/sys/kernel/random/uuid)
submission="{\"task\": \"virtvault.backup\", \"request\": {\"domain\": \"$1\"}, \"task_id\": \"$task\"}"
sent=$(flower --json "{\"args\": [$submission], \"queue\": \"central\"}" \
    "$FLOWER_URL/api/task/send-task/virtvault.submit")

# A wrong field or an unknown domain fails the submission: then the backup's task never begins.
submit=$(echo "$sent" | sed 's/.*"task-id": "\([^"]*\)".*/\1/')
ended "$submit"
ended "$task"
