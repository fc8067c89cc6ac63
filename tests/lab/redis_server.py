"""A Redis of the test's own, on a unix socket."""

import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

__all__ = ["RedisServer"]

# Seconds until a started server must answer; a tenth is usual.
START_TIMEOUT = 15.0
# Seconds a server gets to end after SIGTERM.
STOP_TIMEOUT = 15.0
# A unix socket's path holds 107 characters; the temporary names beside it need some of them.
MAX_SOCKET_PATH = 100


class RedisServer:
    """A real redis-server with its data in `directory`, which is deleted if it was made here.

    Everything is appended to a file, so acknowledged data outlives `stop()` and `kill()`. With
    `port` it listens on loopback too.
    """

    def __init__(self, directory: Path, *, port: int | None = None) -> None:
        self.directory = directory
        self.port = port
        self.socket = directory / "redis.sock"
        if len(str(self.socket)) > MAX_SOCKET_PATH:
            raise ValueError(f"{self.socket} is too long for a unix socket; use a shorter path")
        self._owns_directory = not directory.exists()
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The address in the form Celery and kombu read."""
        return f"redis+socket://{self.socket}?virtual_host=0"

    @property
    def redis_py_url(self) -> str:
        """The address in the form redis-py reads."""
        return f"unix://{self.socket}?db=0"

    @property
    def tcp_url(self) -> str:
        """The loopback address, in the form both read; only with a `port`."""
        if self.port is None:
            raise ValueError("this server was given no port")
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> "redis.Redis[bytes]":
        """A new client, with bytes as replies; the caller closes it."""
        return redis.Redis.from_url(self.redis_py_url)

    def start(self) -> None:
        """Start the server and wait until it has read its data and answers."""
        if self._process is not None:
            raise RuntimeError(f"the Redis in {self.directory} runs already")
        with (self.directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                self.kill()
                what = "did not answer" if code is None else f"ended with {code}"
                said = (self.directory / "redis.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"redis-server {what}; its log: {said}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the server in good order; no effect when it does not run."""
        if self._process is None:
            return
        # A frozen process would not see the signal to end.
        self.thaw()
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
            self._process = None
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL the server, frozen or not; no effect when it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop the server's process: clients stay connected and get no answer."""
        self._running().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        self._running().send_signal(signal.SIGCONT)

    def flush(self) -> None:
        """Delete all keys of all databases."""
        with self.client() as client:
            client.flushall()

    def close(self) -> None:
        """Stop the server, and delete its directory if it was made here."""
        self.stop()
        if self._owns_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise RuntimeError(f"the Redis in {self.directory} does not run")
        return self._process

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def _command(self) -> list[str]:
        return [
            "redis-server",
            *("--bind", "127.0.0.1"),
            *("--port", str(self.port or 0)),
            *("--unixsocket", str(self.socket)),
            *("--unixsocketperm", "700"),
            *("--dir", str(self.directory)),
            *("--appendonly", "yes"),
            # Snapshots would fork a second process; the append-only file holds all there is.
            *("--save", ""),
            *("--daemonize", "no"),
        ]
