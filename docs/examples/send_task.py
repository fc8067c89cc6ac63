"""Back up a domain from a program that has Celery and nothing of virtvault's.

    pip install 'celery[redis]'
    export BROKER_URL=redis://127.0.0.1:6379/0
    python send_task.py DOMAIN

docs/contract.md says what is sent and what comes back.
"""

import json
import os
import sys
import time
import uuid

from celery import Celery, exceptions

url = os.environ["BROKER_URL"]
app = Celery("a-service-of-yours", broker=url, backend=os.environ.get("RESULT_BACKEND", url))
app.conf.task_default_queue = "central"

task_id = str(uuid.uuid4())
submission = {
    "task": "virtvault.backup",
    "request": {"domain": sys.argv[1], "sync": "auto"},
    "task_id": task_id,
}
submitted = app.send_task("virtvault.submit", args=[submission], expires=60)
try:
    # A wrong field, or a domain that is nowhere, is raised here: args are (message, mend).
    print("submitted:", json.dumps(submitted.get(timeout=60)))
except exceptions.TimeoutError:
    sys.exit("No answer: does `virtvault central` run? Submit it again under the same task_id.")
except Exception as error:
    sys.exit("\n  ".join(map(str, error.args)))

run = app.AsyncResult(task_id)
while not run.ready():
    time.sleep(0.5)
if run.failed() or run.status == "REVOKED":
    sys.exit("\n  ".join(map(str, run.result.args)))
print("point", run.result["point"], "of", run.result["domain"])
