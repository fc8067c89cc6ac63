"""A qemu-storage-daemon: QEMU's block layer without a guest, behind the same Monitor.

It runs in a session of its own and outlives the worker, which finds it again by its sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from qemu.qmp import QMPError
from qemu.qmp.legacy import QEMUMonitorProtocol

from virtvault.errors import DomainStopped, MonitorError, NotReachable, WorkFailed
from workers.capabilities import Capabilities, probe
from workers.monitor import qmp_arguments

__all__ = ["DAEMONS", "StorageDaemon", "StorageDaemonMonitor", "daemon_of"]


class StorageDaemon:
    """One daemon, known by its directory: ``work.qmp`` for its run, ``control.qmp`` for control."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._bound: subprocess.Popen[str] | None = None

    def start(self, *, ends_with_us: bool = False) -> None:
        """Start it; returns once it listens.

        :param ends_with_us: whether the kernel kills it with the thread that starts it.
        :raises WorkFailed: it does not start.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._pidfile.unlink(missing_ok=True)
        monitors = []
        for name in ("work", "control"):
            socket = f"socket,id={name},path={self.directory / name}.qmp,server=on,wait=off"
            monitors += ["--chardev", socket, "--monitor", f"chardev={name}"]
        if ends_with_us:
            self._start_bound(["qemu-storage-daemon", *monitors, "--pidfile", str(self._pidfile)])
            return
        done = subprocess.run(
            ["qemu-storage-daemon", *monitors, "--daemonize", "--pidfile", str(self._pidfile)],
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
        if done.returncode:
            raise _does_not_start(done.stderr)

    def _start_bound(self, command: list[str]) -> None:
        self._bound = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        # It writes its pid once its monitors listen.
        until = time.monotonic() + 10
        while not self._pidfile.exists():
            if self._bound.poll() is not None or time.monotonic() > until:
                self._bound.kill()
                raise _does_not_start(self._bound.communicate()[1])
            time.sleep(0.005)

    def remove(self) -> None:
        """Remove what is left of one that has ended."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def alive(self) -> bool:
        """Whether the process is there: by pid and by its command line, since pids come again."""
        try:
            command = Path(f"/proc/{int(self._pidfile.read_text())}/cmdline").read_bytes()
        except (OSError, ValueError):
            return False
        return str(self._pidfile).encode() in command

    def monitor(self, timeout: float, name: str = "work") -> StorageDaemonMonitor:
        """Connect to it.

        :raises DomainStopped: it is gone.
        """
        return StorageDaemonMonitor(f"{self.directory / name}.qmp", timeout)

    def end(self) -> None:
        """End it now, if it runs."""
        until = time.monotonic() + 10
        while self.alive():
            late = time.monotonic() > until
            with contextlib.suppress(ProcessLookupError, OSError, ValueError):
                os.kill(int(self._pidfile.read_text()), signal.SIGKILL if late else signal.SIGTERM)
            time.sleep(0.01)
        if self._bound is not None:
            # It has no command line any more, so it is about to be gone.
            self._bound.communicate()
            self._bound = None

    @property
    def _pidfile(self) -> Path:
        return self.directory / "daemon.pid"


def _does_not_start(said: str) -> WorkFailed:
    return WorkFailed(
        f"qemu-storage-daemon does not start: {said.strip()}.",
        "Install qemu-utils (Debian: qemu-system-common has the daemon too).",
    )


# By what a run is: the beginning of its daemon's directory.
DAEMONS = {"restore": "r", "verify": "v", "serve": "s", "prune": "p"}


def daemon_of(runtime_dir: str, kind: str, tag: str) -> StorageDaemon:
    """The storage daemon of a run on stored points, running or not; ``kind`` as in its journal."""
    return StorageDaemon(Path(runtime_dir, f"{DAEMONS[kind]}-{tag}"))


class StorageDaemonMonitor:
    """QMP over a socket of a storage daemon; used by one thread."""

    def __init__(self, socket: str, timeout: float) -> None:
        # The library takes its thread's event loop and would leave a new one open.
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        try:
            try:
                self._qmp = self._connected(socket, timeout)
            except QMPError:
                # The library gives up where an event comes before the reply to its greeting (seen).
                self._qmp = self._connected(socket, timeout)
        except (TimeoutError, QMPError, OSError) as error:
            self._end_loop()
            raise DomainStopped(
                f"The storage daemon at {socket} is gone: {error}.", "Run the task again."
            ) from error

    @staticmethod
    def _connected(socket: str, timeout: float) -> QEMUMonitorProtocol:
        made = QEMUMonitorProtocol(socket)
        made.settimeout(timeout)
        made.connect()
        return made

    @cached_property
    def capabilities(self) -> Capabilities:
        """See :attr:`workers.monitor.Monitor.capabilities`."""
        return probe(self)

    def execute(self, command: str, **arguments: Any) -> Any:
        """See :meth:`workers.monitor.Monitor.execute`."""
        message = {"execute": command, "arguments": qmp_arguments(arguments)}
        try:
            reply = self._qmp.cmd_obj(message)
        except TimeoutError as error:
            raise NotReachable(f"The storage daemon does not answer {command}.") from error
        except (QMPError, OSError, EOFError) as error:
            raise DomainStopped(
                f"The storage daemon ended during {command}: {error}.", "Run the task again."
            ) from error
        if "error" in reply:
            description = dict(reply["error"]).get("desc")
            raise MonitorError(f"The storage daemon refused {command}: {description}")
        return reply["return"]

    def wait(self, seconds: float) -> None:
        """See :meth:`workers.monitor.Monitor.wait`."""
        with contextlib.suppress(asyncio.TimeoutError, QMPError, OSError):
            self._qmp.pull_event(wait=seconds)

    def close(self) -> None:
        """Close the connection; the daemon goes on."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(QMPError, OSError, EOFError, asyncio.TimeoutError):
            self._qmp.close()
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.close()
        asyncio.set_event_loop(None)
