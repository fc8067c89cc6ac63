"""Receive completion callbacks, and check that they are from virtvault.

    export WEBHOOK_SECRET_FILE=FILE      # the webhook_secret_file of central's [notify]
    python receive_callbacks.py [PORT]

Central's settings must allow the URL (`callback_urls = ["http://127.0.0.1:8700/"]`); it is named
in a submission as `callback`. docs/notifications.md has the document and the headers.
"""

import hashlib
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

with open(os.environ["WEBHOOK_SECRET_FILE"], "rb") as file:
    SECRET = file.read().strip()
SEEN = set()


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        stamp = self.headers.get("X-Virtvault-Timestamp", "0")
        made = hmac.new(SECRET, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        genuine = hmac.compare_digest("sha256=" + made, self.headers["X-Virtvault-Signature"] or "")
        # An old one may be somebody's recording.
        if not genuine or abs(time.time() - int(stamp)) > 300:
            self.send_error(403)
            return
        told = json.loads(body)
        # One may come twice; its id is the same then.
        if told["id"] not in SEEN:
            SEEN.add(told["id"])
            run = told["run"]
            print(run["kind"], run["domain"], run["state"], run["point"], run["error"], flush=True)
        # Any 2xx: taken. Anything else, or none within 10 seconds: sent again, for a day.
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


port = int(sys.argv[1]) if len(sys.argv) > 1 else 8700
with ThreadingHTTPServer(("127.0.0.1", port), Receiver) as server:
    print("listening on", server.server_port, flush=True)
    server.serve_forever()
