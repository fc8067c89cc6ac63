"""The supervisord that runs all programs: start it, ask it, stop it."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

from supervisor import childutils

from tasks.embedded.files import log_dir
from virtvault.errors import NotReachable, WorkFailed
from virtvault.settings import Settings

__all__ = ["Supervision", "hold_start"]

# Seconds until all must have ended: supervisord kills each program after 30, Redis last.
STOP_SECONDS = 100.0
LOCK = "up.lock"


class Supervision:
    """The supervisord of one state directory."""

    def __init__(self, given: Settings) -> None:
        self._given = given
        self._socket = Path(given.runtime_dir, "supervisor.sock")
        self._process: subprocess.Popen[bytes] | None = None

    def answers(self) -> bool:
        """Whether it runs."""
        try:
            self._call().getPID()
        except (OSError, HTTPException):
            return False
        return True

    def was_killed(self) -> bool:
        """Whether the last one left its socket behind; its programs end by themselves."""
        return self._socket.exists() and not self.answers()

    def start(self, configuration: Path) -> None:
        """Start it in a session of its own: the end of our terminal is not its end."""
        log = log_dir(self._given) / "supervisord.out"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "supervisor.supervisord"),
                    *("--nodaemon", "--silent", "-c", str(configuration)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def states(self) -> dict[str, str]:
        """Each program's state in supervisord's words; empty while it does not answer yet.

        :raises WorkFailed: it has ended.
        """
        if self._process is not None and self._process.poll() is not None:
            said = (log_dir(self._given) / "supervisord.out").read_text(errors="replace")
            raise WorkFailed(
                f"supervisord ended with {self._process.returncode}: {said.strip()[-1000:]}",
                f"See {log_dir(self._given)}/supervisord.log.",
            )
        try:
            return {one["name"]: one["statename"] for one in self._call().getAllProcessInfo()}
        except (OSError, HTTPException):
            return {}

    def stop(self) -> None:
        """Stop all programs, wait until they and supervisord have ended.

        :raises NotReachable: one of them does not end.
        """
        # A pidfd, not a pid: it cannot come to mean another process, and needs no parent to wait.
        watched: dict[int, int] = {}
        try:
            call = self._call()
            pids = [call.getPID(), *(one["pid"] for one in call.getAllProcessInfo())]
            for pid in filter(None, pids):
                with suppress(ProcessLookupError):
                    watched[os.pidfd_open(pid)] = pid
            call.shutdown()
        except (OSError, HTTPException):
            # It has just been started and does not listen yet, or is ending already.
            if self._process is not None:
                self._process.terminate()
        try:
            left = _wait_for_ends(watched, STOP_SECONDS)
        finally:
            for descriptor in watched:
                os.close(descriptor)
        if left:
            raise NotReachable(
                f"After {STOP_SECONDS:.0f} s these processes have not ended: {left}.",
                f"See {log_dir(self._given)}/supervisord.log.",
            )
        if self._process is not None:
            self._process.wait(STOP_SECONDS)
        self._remove_runtime()

    def _remove_runtime(self) -> None:
        """Leave no empty directories; sockets of backups that go on in QEMU stay."""
        runtime = Path(self._given.runtime_dir)
        (runtime / LOCK).unlink(missing_ok=True)
        with suppress(OSError):
            runtime.rmdir()
            runtime.parent.rmdir()

    def wait(self) -> int:
        """Wait until the supervisord that we started ends; gives its exit code."""
        return self._process.wait() if self._process is not None else 0

    def _call(self) -> Any:
        where = {"SUPERVISOR_SERVER_URL": f"unix://{self._socket}"}
        return childutils.getRPCInterface(where).supervisor


def _wait_for_ends(watched: dict[int, int], seconds: float) -> list[int]:
    """Wait for the ends of the processes behind pidfds; gives the pids that live on."""
    poll, left = select.poll(), dict(watched)
    for descriptor in left:
        poll.register(descriptor, select.POLLIN)
    until = time.monotonic() + seconds
    while left and (rest := until - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(rest * 1000):
            poll.unregister(descriptor)
            del left[descriptor]
    return sorted(left.values())


@contextmanager
def hold_start(given: Settings) -> Iterator[None]:
    """Keep a second `up` from starting the same programs at the same time.

    :raises WorkFailed: another one is at it.
    """
    with Path(given.runtime_dir, LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkFailed(
                f"Another `virtvault up` is just starting ({given.state_dir}).",
                "Wait for it.",
            ) from error
        yield
