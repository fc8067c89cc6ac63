"""Print each run of the fleet as it ends, from the REST API's event stream.

    export VIRTVAULT_URL=http://127.0.0.1:5555     # where Flower is, with its url_prefix
    export VIRTVAULT_TOKEN=vv_…                    # virtvault token add NAME --role viewer
    python follow_events.py [HOW_MANY]

Nothing but Python is needed. A run may come twice. After a cut, `last` brings what was missed.
"""

import json
import os
import sys
import urllib.request

wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 0
request = urllib.request.Request(
    os.environ["VIRTVAULT_URL"] + "/v1/events?last=10",
    headers={"Authorization": "Bearer " + os.environ["VIRTVAULT_TOKEN"]},
)
seen = 0
# The server says something every 15 seconds: silence for longer is a broken connection.
with urllib.request.urlopen(request, timeout=60) as stream:
    for line in stream:
        if not line.startswith(b"data: "):
            continue
        run = json.loads(line.removeprefix(b"data: "))
        print(run["finished"], run["kind"], run["domain"], run["state"], run["error"], flush=True)
        seen += 1
        if seen == wanted:
            break
