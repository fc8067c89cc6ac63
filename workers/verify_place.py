"""What a verify has outside its own process while it boots a point or looks into a live domain.

All of it is named by the task, so that whoever comes later finds it: a domain, a storage daemon,
two directories, and in the source's QEMU an export and a bitmap.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from workers import storage_daemon
from workers.engine import Engine, tag_of
from workers.storage_daemon import StorageDaemon

__all__ = ["Place"]


class Place:
    """The names of one task."""

    def __init__(self, engine: Engine, task_id: str) -> None:
        self._settings = engine.settings
        self.tag = tag_of(task_id)
        self.domain = f"virtvault-verify-{self.tag}"

    @property
    def daemon(self) -> StorageDaemon:
        """The storage daemon that a booted point is served by."""
        return storage_daemon.daemon_of(self._settings.runtime_dir, "verify", self.tag)

    @property
    def sockets(self) -> Path:
        """The directory of sockets between the task and a QEMU."""
        return Path(self._settings.runtime_dir, f"v-{self.tag}.sockets")

    @property
    def local(self) -> Path:
        """The directory of what a booted point writes."""
        return self._settings.scratch / f"verify-{self.tag}"

    @property
    def mark(self) -> str:
        """What export and bitmap in the source's QEMU are called."""
        return f"virtvault-{self.tag}-verify"

    def make_sockets(self, owner: int) -> Path:
        """Make :attr:`sockets`, for ``owner`` (and root) alone to make and open sockets in."""
        self.sockets.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chown(self.sockets, owner, -1)
        self.sockets.parent.chmod(0o711)
        return self.sockets

    def make_local(self, owner: int) -> Path:
        """Make :attr:`local`, in which ``owner`` may write what it is told the name of."""
        self.local.mkdir(parents=True, exist_ok=True, mode=0o711)
        os.chown(self.local, owner, -1)
        return self.local

    def remove(self) -> None:
        """End the daemon and remove the directories."""
        self.daemon.end()
        for directory in (self.daemon.directory, self.sockets, self.local):
            shutil.rmtree(directory, ignore_errors=True)
