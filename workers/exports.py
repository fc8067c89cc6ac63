"""NBD exports: the processes through which QEMU writes, so that it needs no access to images.

Each is a ``qemu-nbd`` in a session of its own: it outlives the worker, and ends by itself when
QEMU lets go of it (no ``--persistent``), but for those of a run that is not isolated.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from virtvault.errors import RepositoryUnusable

__all__ = ["Export", "end", "flush", "kill", "serve"]


@dataclass(frozen=True)
class Export:
    """A running qemu-nbd: what recovery needs to find it again."""

    name: str
    socket: str
    image: str

    @property
    def url(self) -> str:
        """The export as QEMU and its tools take it."""
        return f"nbd+unix:///{self.name}?socket={self.socket}"


def serve(
    export: Export,
    *,
    uid: int,
    clients: int,
    limit: int = 0,
    compress: bool = False,
    stay: bool = False,
    parent: str = "",
) -> Export:
    """Start serving a qcow2 image; returns once it listens.

    :param uid: the user QEMU runs as, who alone may connect.
    :param limit: bytes the image file may grow to, held by the kernel (RLIMIT_FSIZE); 0 for none.
    :param stay: whether it outlives its last client: ``drive-backup`` lets go of its target before
        that could be flushed.
    :param parent: the qcow2 image below it, which is opened without a lock: a merge may write to
        it or to those below meanwhile, into what the images above hide.
    :raises RepositoryUnusable: qemu-nbd did not start; the message quotes it.
    """
    # An image QEMU filled past the limit gets EFBIG as an NBD error instead of killing qemu-nbd.
    bounded = ["prlimit", f"--fsize={limit}", "env", "--ignore-signal=XFSZ"] if limit else []
    node: dict[str, object] = {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": export.image},
    }
    if parent:
        node["backing"] = {
            "driver": "qcow2",
            "read-only": True,
            "force-share": True,
            "file": {"driver": "file", "filename": parent, "read-only": True},
        }
    if compress:
        node = {"driver": "compress", "file": node}
    command = [
        *bounded,
        "qemu-nbd",
        f"--socket={export.socket}",
        f"--export-name={export.name}",
        f"--shared={clients}",
        f"--cache={_cache(export.image)}",
        "--discard=unmap",
        "--fork",
        *(["--persistent"] if stay else []),
        f"--pid-file={export.socket}.pid",
        f"json:{json.dumps(node)}",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, start_new_session=True
    )
    if done.returncode:
        raise RepositoryUnusable(
            f"Cannot serve {export.image}: {done.stderr.strip()}.",
            "See whether the file system holds it and qemu-utils is installed.",
        )
    Path(export.socket).chmod(0o600)
    os.chown(export.socket, uid, -1)
    return export


def flush(export: Export, seconds: float) -> None:
    """Have everything written so far reach the disk, and hear that it did.

    Over a second connection to the same process: when this returns, the image is whole even if
    the process is killed the next moment. A process that was killed and lost what it had cached
    cannot answer, so this is also what tells a whole image from a torn one.

    :raises RepositoryUnusable: it did not confirm within ``seconds``.
    """
    try:
        done = subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "flush", export.url],
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise RepositoryUnusable(
            f"{export.image} could not be flushed within {seconds:g} s.",
            "See to the repository's storage.",
        ) from error
    if done.returncode or "failed" in done.stdout:
        raise RepositoryUnusable(
            f"{export.image} was not confirmed as written: {(done.stderr or done.stdout).strip()}.",
            "See to the repository's storage, and whether somebody killed qemu-nbd.",
        )


def end(export: Export, grace: float = 10.0) -> None:
    """End the process: TERM, and KILL where that takes longer than ``grace`` seconds.

    TERM closes the image as it should be; a process that hangs is not waited for.
    """
    _signal(export, signal.SIGTERM, grace)
    kill(export)


def kill(export: Export) -> None:
    """End the process at once, stalled or not: QEMU's requests to it fail within milliseconds."""
    _signal(export, signal.SIGKILL, 10.0)
    for path in (export.socket, f"{export.socket}.pid"):
        Path(path).unlink(missing_ok=True)


def _signal(export: Export, number: signal.Signals, seconds: float) -> None:
    """Send a signal and wait up to ``seconds`` for the process' end."""
    pid = _pid(export)
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    until = time.monotonic() + seconds
    while _is(pid, export) and time.monotonic() < until:
        time.sleep(0.01)


def _pid(export: Export) -> int | None:
    try:
        pid = int(Path(f"{export.socket}.pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if _is(pid, export) else None


def _is(pid: int, export: Export) -> bool:
    """Whether the pid is still this export: pids are used again, socket paths are not."""
    try:
        return export.socket.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _cache(image: str) -> str:
    """``none`` (O_DIRECT: no second copy in the page cache) where the file system can."""
    try:
        os.close(os.open(image, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return "writeback"
    return "none"
