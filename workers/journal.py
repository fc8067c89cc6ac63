"""The write-ahead journal of runs in flight: ``<state_dir>/runs/<task id>.json``.

Written, flushed and renamed before each step that a killed worker must be able to find again;
removed when nothing of the run is left to do or to undo.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from virtvault.errors import DomainBusy, InvalidRequest
from workers.bitmap_names import OurBitmap

__all__ = ["Journal", "Run", "durable_write", "sync_directory"]


log = logging.getLogger(__name__)

TASK_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,149}")
# Seconds; as long as Celery keeps results.
KEEP_RESULTS = 7 * 86400


@dataclass
class Run:
    """One run as its journal holds it.

    ``phase``: ``planned`` → ``standing`` (nodes and bitmaps are being made in QEMU) → ``instant``
    (the guest may be paused by us) → ``copying`` (all jobs were started) → ``copied`` (all ended
    well and their images are flushed) → ``committed``; or ``undoing``. A snapshot export is
    ``captured`` and then ``open`` where a backup is copying. Of a run that is ``undone`` only files
    in a repository that was away are left. ``error`` is set once the run has failed: what is left
    to undo is then anybody's to undo. ``way`` is the capture's name. ``repository_id`` is in the
    new bitmaps' names and ``partial`` the point's directory: undoing needs no repository that can
    be opened.
    """

    task_id: str
    kind: str
    request: dict[str, Any]
    domain: str
    uuid: str
    repository: str
    point: str
    started: str
    phase: str = "planned"
    repository_id: str = ""
    partial: str = ""
    was_running: bool = False
    draft: dict[str, Any] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)
    error: str = ""
    way: str = ""
    # We started the domain for this run, and it has not been let run yet.
    unstarted: bool = False
    # We started QEMU's NBD server for this run.
    serving: bool = False
    # A later run of the domain has begun: the old bitmaps are its to remove.
    superseded: bool = False

    def bitmap(self, target: str) -> OurBitmap:
        """The bitmap that counts from this run's point on a disk."""
        return OurBitmap(self.repository_id, self.point, target)

    @property
    def tag(self) -> str:
        """What names the run's nodes, jobs and sockets."""
        return self.point[-8:]


class Journal:
    """All runs of this hypervisor."""

    def __init__(self, state_dir: str) -> None:
        self._runs = Path(state_dir, "runs")
        self._locks = Path(state_dir, "locks")
        self._done = Path(state_dir, "done")

    def write(self, run: Run) -> None:
        """Make ``run`` durable as it is now."""
        self._runs.mkdir(parents=True, exist_ok=True)
        durable_write(self._path(run.task_id), json.dumps(asdict(run), indent=1))

    def read(self, task_id: str) -> Run | None:
        """The run of a task, None where it has none in flight, or none that can be read."""
        path = self._path(task_id)
        try:
            text = json.loads(path.read_text())
            # What a later version knows besides is not needed to undo what it began.
            known = {field.name for field in fields(Run)}
            return Run(**{key: value for key, value in text.items() if key in known})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError) as error:
            log.error("%s cannot be read, its run is left alone: %s", path, error)
            return None

    def forget(self, task_id: str) -> None:
        """Nothing is left to do for this run."""
        self._path(task_id).unlink(missing_ok=True)

    def finish(self, task_id: str, result: dict[str, Any]) -> None:
        """The run is done and nothing is left to do for it."""
        self.remember(task_id, result)
        self.forget(task_id)

    def remember(self, task_id: str, result: dict[str, Any]) -> None:
        """Keep for some days the result of a run that leaves nothing else that tells."""
        self._done.mkdir(parents=True, exist_ok=True)
        durable_write(self._done / f"{task_id}.json", json.dumps(result))
        for path in self._done.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > KEEP_RESULTS:
                    path.unlink()

    def finished(self, task_id: str) -> dict[str, Any] | None:
        """The result of a run that :meth:`remember` keeps."""
        try:
            result: dict[str, Any] = json.loads((self._done / f"{task_id}.json").read_text())
        except FileNotFoundError:
            return None
        return result

    def all(self) -> list[Run]:
        """Every run in flight, oldest first."""
        found = [self.read(path.stem) for path in self._runs.glob("*.json")]
        return sorted((run for run in found if run), key=lambda run: run.started)

    def wishes(self, task_id: str) -> Path:
        """The file whose presence asks the run to cancel: seen across processes and restarts."""
        return self._runs / f"{checked(task_id)}.cancel"

    @contextmanager
    def hold(self, key: str, task_id: str) -> Iterator[None]:
        """Hold a domain (or a destination) for one run.

        A kernel lock: it ends with the process, so it is never stale.

        :raises HeldElsewhere: another task holds it, or another delivery of the same one.
        """
        self._locks.mkdir(parents=True, exist_ok=True)
        path = self._locks / key
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 200, 0).decode()
                raise HeldElsewhere(
                    f"Task {holder or 'unknown'} is at work on it.",
                    f"Wait for it, or stop it with `virtvault cancel {holder}`.",
                    holder=holder,
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, task_id.encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _path(self, task_id: str) -> Path:
        return self._runs / f"{checked(task_id)}.json"


class HeldElsewhere(DomainBusy):
    """The lock's holder, for :meth:`Journal.hold`'s caller to word it."""

    def __init__(self, message: str, mend: str = "", holder: str = "") -> None:
        super().__init__(message, mend)
        self.holder = holder


def checked(task_id: str) -> str:
    """A task id that may become a file name.

    :raises InvalidRequest: it may not.
    """
    if not TASK_ID.fullmatch(task_id):
        raise InvalidRequest(
            f"task id {task_id!r}: use letters, digits, '_', '.', '-'.", "Mend it."
        )
    return task_id


def durable_write(path: Path, text: str) -> None:
    """Replace ``path`` so that a crash leaves the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.new")
    # Whoever may write there must not have us write elsewhere by a link of that name.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o666), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make a directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
