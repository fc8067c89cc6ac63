"""A webhook's URL is a secret."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tasks import webhook


class Taker(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_the_log_of_a_delivery_has_no_path_and_no_query(caplog: pytest.LogCaptureFixture) -> None:
    with HTTPServer(("127.0.0.1", 0), Taker) as server:
        one = threading.Thread(target=server.handle_request)
        one.start()
        with caplog.at_level("INFO"):
            webhook.post(f"http://127.0.0.1:{server.server_port}/path?key=query", {"id": "n1"})
        one.join(10)
    assert "path" not in caplog.text
    assert "query" not in caplog.text
