"""Those outside whom notices go to: an HTTP server and an SMTP server on loopback."""

import base64
import json
import socketserver
import ssl
import subprocess
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["MailServer", "Receiver", "certificate"]


class _Server:
    """A server in a thread of its own."""

    server: socketserver.BaseServer

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.server.shutdown()
        self.server.server_close()


@dataclass
class Taken:
    """One POST: path, headers, body as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Receiver(_Server):
    """Takes POSTs with ``answer``; while ``let_go`` is cleared it keeps them waiting."""

    def __init__(self) -> None:
        self.answer = 204
        self.taken: list[Taken] = []
        self.let_go = threading.Event()
        self.let_go.set()
        receiver = self

        class Answers(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.taken.append(Taken(self.path, dict(self.headers), body))
                receiver.let_go.wait(30)
                self.send_response(receiver.answer)
                if 300 <= receiver.answer < 400:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"  # type: ignore[index]


@dataclass
class Letter:
    """One e-mail as the server got it: to whom, over TLS or not, as which user."""

    to: list[str]
    message: Message
    encrypted: bool
    user: str

    @property
    def text(self) -> str:
        return self.message.get_payload(decode=True).decode()  # type: ignore[union-attr]


@dataclass
class _Session:
    encrypted: bool = False
    user: str = ""
    to: list[str] = field(default_factory=list)


class MailServer(_Server):
    """Speaks as much SMTP as smtplib does: EHLO, STARTTLS, AUTH PLAIN, one message after another.

    Without TLS it takes neither a password nor, where it has a certificate, a message. ``refuses``
    makes it answer 451 to every recipient.
    """

    def __init__(self, certified: tuple[Path, Path] | None = None, password: str = "") -> None:
        self.letters: list[Letter] = []
        self.refuses = False
        self.password = password
        self.certified = certified
        outer = self

        class Speaks(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with ExitStack() as wrapped:
                    outer._speak(self, wrapped)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Speaks)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"  # type: ignore[index]

    def _speak(self, peer: socketserver.StreamRequestHandler, until_end: ExitStack) -> None:
        session, files = _Session(), (peer.rfile, peer.wfile)

        def say(text: str) -> None:
            files[1].write(f"{text}\r\n".encode())
            files[1].flush()

        say("220 lab")
        while line := files[0].readline().decode().strip():
            verb, _, rest = line.partition(" ")
            if verb.upper() == "EHLO":
                say("250-lab")
                offer = "AUTH PLAIN" if session.encrypted or not self.certified else "STARTTLS"
                say(f"250 {offer}")
            elif verb.upper() == "STARTTLS" and self.certified:
                say("220 go")
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(*self.certified)
                inner = context.wrap_socket(peer.connection, server_side=True)
                until_end.enter_context(inner)
                files = (inner.makefile("rb"), inner.makefile("wb"))
                session = _Session(encrypted=True)
            elif verb.upper() == "AUTH":
                _, user, given = base64.b64decode(rest.split()[-1]).decode().split("\0")
                session.user = user if given == self.password else ""
                say("235 ok" if session.user else "535 wrong password")
            elif verb.upper() == "RCPT":
                session.to.append(rest.partition("<")[2].partition(">")[0])
                say("451 try later" if self.refuses else "250 ok")
            elif verb.upper() == "DATA":
                say("354 go on")
                said = b"".join(iter(files[0].readline, b".\r\n"))
                message = message_from_bytes(said, policy=default)
                given_to, session.to = session.to, []
                self.letters.append(Letter(given_to, message, session.encrypted, session.user))
                say("250 taken")
            elif verb.upper() == "QUIT":
                say("221 bye")
                return
            else:
                say("250 ok")


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate and its key for 127.0.0.1, signed by itself."""
    files = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=lab"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", str(files[0]), "-keyout", str(files[1])),
        ],
        check=True,
        capture_output=True,
    )
    return files
