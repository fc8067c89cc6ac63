"""A PostgreSQL of the tests' own, on a unix socket alone."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

__all__ = ["Postgres"]

# Seconds until a started server must answer; under one is usual.
START_TIMEOUT = 30.0
STOP_TIMEOUT = 20.0
# It refuses to run as root; Debian's package makes this user.
USER = "postgres"


class Postgres:
    """A private cluster, deleted when closed; as its superuser, without a password.

    What is committed is not synced to disk: it outlives the server's death, not the machine's.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="vvpg-", dir="/var/tmp"))
        self._binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), key=_version)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._make()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def url(self, database: str = "postgres") -> str:
        """The address of a database in SQLAlchemy's form."""
        return f"postgresql+psycopg://{USER}@/{database}?host={self.directory}"

    def connect(self, database: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        """A connection in which every statement is its own transaction."""
        return psycopg.connect(
            host=str(self.directory), dbname=database, user=USER, autocommit=True
        )

    def database(self, template: str = "template0") -> str:
        """The URL of a new database, empty or a copy of another; it goes with the cluster."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._as_user(
                    "postgres",
                    *("-D", str(self.directory / "data")),
                    *("-k", str(self.directory)),
                    *("-c", "listen_addresses="),
                    *("-c", "fsync=off"),
                    *("-c", "full_page_writes=off"),
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.directory / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"PostgreSQL does not answer; its log: {said}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server and its sessions; no effect when it does not run.

        SIGINT lets it finish its files, SIGQUIT leaves that to the next start.
        """
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def close(self) -> None:
        """Stop the server and delete the cluster."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _make(self) -> None:
        self.directory.chmod(0o711)
        if os.getuid() == 0:
            shutil.chown(self.directory, USER)
        made = subprocess.run(
            self._as_user(
                "initdb",
                *("-D", str(self.directory / "data")),
                *("-U", USER),
                *("--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"),
            ),
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        if made.returncode != 0:
            raise RuntimeError(f"initdb failed: {made.stdout}{made.stderr}")

    def _as_user(self, program: str, *arguments: str) -> list[str]:
        command = [str(self._binaries / program), *arguments]
        if os.getuid() != 0:
            return command
        # Without setpriv's own session: the signals that we send reach the server itself.
        return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *command]

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True


def _version(directory: Path) -> int:
    return int(directory.parent.name)
