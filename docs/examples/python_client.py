"""Back up a domain from another Python program.

pip install virtvault                    # no extras: neither libvirt nor a database
export VIRTVAULT_BROKER_URL=redis://127.0.0.1:6379/0     # or VIRTVAULT_CONFIG=FILE
python python_client.py DOMAIN
"""

import sys
import uuid

from virtvault import Client, queues
from virtvault.errors import VirtvaultError
from virtvault.models import Submission

domain = sys.argv[1]
with Client() as client:
    try:
        # `client.backup(domain)` is the same by a shorter way. A submission goes through central,
        # may name a callback, and may be repeated after an error: its id makes it one task.
        handle = client.submit(
            Submission(queues.BACKUP, {"domain": domain}, task_id=str(uuid.uuid4()))
        )
        result = handle.wait(
            timeout=3600, on_progress=lambda p: print(p.phase, f"{p.percent:.0f} %")
        )
    except VirtvaultError as error:
        sys.exit(f"{error.message}\n  {error.mend}")
print(f"point {result.point} of {result.domain} on {result.host}")
