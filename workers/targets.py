"""What a backup writes to: each disk's image in the repository and its scratch, served by NBD."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from virtvault.errors import RepositoryUnusable
from virtvault.settings import Settings
from workers import exports
from workers.disks import Disk
from workers.exports import Export
from workers.journal import Run
from workers.plan import DiskPlan
from workers.repository.directory import create_image

__all__ = ["Targets", "qemu_uid"]


class Targets:
    """The exports of one run, found again from its journal."""

    def __init__(self, settings: Settings, run: Run) -> None:
        self._settings = settings
        self._run = run
        tag = run.tag
        self._sockets = Path(settings.runtime_dir, tag)
        self._local = settings.scratch / tag

    def image(self, target: str) -> Export:
        """The export of a disk's image in the repository."""
        image = f"{self._run.partial}/{target}.qcow2"
        return Export(target, f"{self._sockets / target}.t", image)

    def scratch(self, target: str) -> Export:
        """The export of a disk's scratch image."""
        return Export(target, f"{self._sockets / target}.s", str(self._local / f"{target}.qcow2"))

    def local(self) -> Path:
        """The run's directory of scratch images and the like, on this host."""
        self._local.mkdir(parents=True, mode=0o700, exist_ok=True)
        return self._local

    def served(self, uid: int) -> str:
        """Where ``uid``'s QEMU makes the socket that an open export is read through."""
        directory = self._sockets / "served"
        directory.mkdir(parents=True, exist_ok=True)
        os.chown(directory, uid, -1)
        return str(directory / "nbd.sock")

    def served_url(self, target: str) -> str:
        """What a reader of an open export opens."""
        return Export(target, str(self._sockets / "served" / "nbd.sock"), "").url

    def open(
        self, chosen: Sequence[Disk], plans: Mapping[str, DiskPlan], uid: int, way: str
    ) -> None:
        """Make the images and serve them to ``uid``, the user that reads or writes them.

        :raises RepositoryUnusable: the repository or the scratch directory cannot be written.
        """
        try:
            self.local()
            self._sockets.mkdir(parents=True, exist_ok=True)
            # QEMU's own user must reach the sockets; it can open only the ones given to it.
            self._sockets.chmod(0o711)
            self._sockets.parent.chmod(0o711)
        except OSError as error:
            raise RepositoryUnusable(
                f"{error.filename}: {error.strerror}.",
                "Mend scratch_dir or runtime_dir; `virtvault check` tests them.",
            ) from error
        for disk in chosen:
            plan = plans[disk.target]
            if plan.sync != "none":
                self._open_image(disk, plan, uid, stay=way == "direct")
            if way == "isolated":
                scratch = self.scratch(disk.target)
                create_image(Path(scratch.image), disk.virtual_size)
                exports.serve(scratch, uid=uid, clients=1, limit=self._settings.scratch_limit)

    def _open_image(self, disk: Disk, plan: DiskPlan, uid: int, *, stay: bool) -> None:
        image = self.image(disk.target)
        backing, format_ = "", "qcow2"
        if plan.parent:
            backing = f"../{plan.parent}/{disk.target}.qcow2"
        elif plan.sync == "top":
            # Named while it is written: without it QEMU would leave out the zeroes that hide it.
            backing, format_ = disk.layers[1].filename, disk.layers[1].driver
        create_image(
            Path(image.image),
            disk.virtual_size,
            backing=backing,
            backing_format=format_,
            compression=self._settings.compression,
        )
        exports.serve(
            image,
            uid=uid,
            clients=self._settings.nbd_clients,
            compress=self._settings.compression != "none",
            stay=stay,
            parent=str(Path(image.image).parent / backing) if plan.parent else "",
        )

    def flush(self) -> None:
        """Have every image confirmed as on disk.

        :raises RepositoryUnusable: one is not.
        """
        for target in self._run.targets:
            exports.flush(self.image(target), self._settings.stall_seconds)

    def close(self) -> None:
        """End the exports of flushed images, before QEMU lets go of them.

        What QEMU still had to ask of a stalled export it would ask with its main loop, and the
        guest would stand.
        """
        for target in self._run.targets:
            exports.end(self.image(target))
            exports.kill(self.scratch(target))

    def kill(self) -> None:
        """End the exports at once: QEMU's requests to them fail, its guest's writes do not."""
        for target in self._run.targets:
            exports.kill(self.image(target))
            exports.kill(self.scratch(target))

    def remove(self) -> None:
        """Remove sockets and scratch images."""
        shutil.rmtree(self._sockets, ignore_errors=True)
        shutil.rmtree(self._local, ignore_errors=True)


def qemu_uid(xml: str) -> int:
    """The user this domain's QEMU runs as, from libvirt's DAC label (``+64055:+64055``)."""
    label = xml.partition("model='dac'")[2].partition("<label>")[2].partition("</label>")[0]
    user = label.partition(":")[0].removeprefix("+")
    return int(user) if user.isdigit() else 0
