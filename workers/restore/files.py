"""Restores into new files, onto devices or into RBD images.

Where a domain is named, it is defined on them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from virtvault.errors import (
    DestinationExists,
    InvalidRequest,
    UnknownDisk,
    VirtvaultError,
)
from virtvault.models import PointDisk, RestoredDisk
from workers.domain_xml import NewDisk
from workers.images import publish, require_room
from workers.jobs import Detached
from workers.journal import sync_directory
from workers.restore.copying import Copy, Copying, add
from workers.restore.destination import (
    claim_device,
    device_of,
    directory_of,
    image_of,
    require_device,
)
from workers.restore.new_domain import NewDomain
from workers.restore.rbd import Image
from workers.restore.story import key_of, make_directory, stored

__all__ = ["Files"]


class Files(Copying):
    """``flatten`` and ``chain`` into a directory; ``flatten`` onto devices and RBD images."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.to: Path | None = None
        if self.request.to or self.request.name:
            self.to = directory_of(self.settings, self.request.to or self.request.name)
            self.run.draft["to"] = str(self.to)
        self._require_places()
        self.devices: dict[str, Path] = {}
        self.images: dict[str, Image] = {}
        for target, wanted in self.request.devices.items():
            if wanted.startswith("rbd:"):
                self.images[target] = image_of(self.settings, target, wanted, self.tag)
            else:
                self.devices[target] = device_of(self.settings, target, wanted)
        self.copies = list(self._plan())
        self.domain = NewDomain(self, self.to) if self.request.name and self.to else None
        self._claims: list[int] = []

    def locks(self) -> list[str]:
        """See :meth:`Story.locks`."""
        found = [key_of("device", device.resolve()) for device in self.devices.values()]
        found += [key_of("image", image) for image in self.images.values()]
        if self.to is not None:
            found.append(key_of("to", self.to))
        if self.domain is not None:
            found.append(self.domain.key)
        return sorted(found)

    def what(self) -> str:
        """See :meth:`Story.what`."""
        places = [str(self.to)] if self.to else []
        return ", ".join(map(str, [*places, *self.devices.values(), *self.images.values()]))

    def work(self) -> None:
        """See :meth:`Story.work`."""
        try:
            if self.run.phase == "copying":
                # The worker that held them has ended; its daemon writes to them still.
                self._claims += [claim_device(c.final) for c in self.copies if c.device]
            super().work()
        except Detached:
            self._release()
            raise

    def require(self) -> None:
        """See :meth:`Copying.require`."""
        self._refuse_overwriting()
        self._release()
        for copy in self.copies:
            if copy.device:
                size, force = copy.disk.virtual_size, self.request.force
                self._claims.append(require_device(copy.final, size, force=force))
        for image in self.images.values():
            image.require()
        if self.to is not None:
            require_room((self.to, self._needed(copy)) for copy in self.copies if copy.is_file)
        if self.domain is not None:
            self.domain.require(self._new_disks())

    def make(self) -> None:
        """See :meth:`Copying.make`."""
        if self.to is not None:
            make_directory(self, self.to)

    def conclude(self) -> None:
        """See :meth:`Copying.conclude`."""
        self._refuse_overwriting()
        self.sync(self.copies)
        self._publish_images()
        for copy in self.copies:
            if copy.is_file and copy.partial.exists():
                publish(copy.partial, copy.final)
        if self.to is not None:
            sync_directory(self.to)
        # From here on nothing is taken back.
        self.phase("committed")
        if self.domain is not None:
            self.domain.define_complete(self._new_disks(), self.what())
        self._release()

    def undo(self) -> None:
        """See :meth:`Story.undo`."""
        super().undo()
        self._release()
        if self.domain is not None and self.run.phase not in ("copied", "committed"):
            self.domain.clear()

    def restored(self) -> list[RestoredDisk]:
        """See :meth:`Story.restored`."""
        return [
            RestoredDisk(
                target=copy.disk.target,
                path=str(copy.final),
                format=copy.format,
                virtual_size=copy.disk.virtual_size,
                stored=copy.disk.virtual_size
                if not copy.is_file
                else sum(stored(c.final) for c in self.copies if c.disk is copy.disk),
            )
            for copy in self.copies
            if not copy.depth
        ]

    def _publish_images(self) -> None:
        # Before the files: it is likelier to fail.
        whole: list[str] = []
        for target, image in self.images.items():
            try:
                image.publish(self.run.draft["identities"][target])
            except VirtvaultError as error:
                if whole:
                    add(error, f"{', '.join(whole)}: restored and complete, and stays.")
                raise
            whole.append(str(image))

    # -- its plan -----------------------------------------------------------------------------

    def _require_places(self) -> None:
        """See that each chosen disk has a place of its own, and no other has."""
        chosen = {disk.target for disk in self.disks}
        for target in self.request.devices:
            if target not in chosen:
                raise UnknownDisk(
                    f"devices: {target!r} is not among the disks to restore.",
                    f"They are {', '.join(sorted(chosen))}.",
                )
        if len(set(self.request.devices.values())) < len(self.request.devices):
            raise InvalidRequest(
                "devices: two disks would be written to one place: "
                + ", ".join(f"{t}={place}" for t, place in sorted(self.request.devices.items()))
                + ".",
                "Give each disk its own.",
            )
        missing = sorted(chosen - set(self.request.devices))
        if self.to is None and missing:
            raise InvalidRequest(
                f"devices: {', '.join(missing)} of point {self.point.id} would go nowhere.",
                "Give each a device, or a directory for the rest (--to), or choose disks (--disk).",
            )
        if self.request.name and any(d.startswith("rbd:") for d in self.request.devices.values()):
            raise InvalidRequest(
                "name: a new domain is not defined on RBD images: its XML would have to name the "
                "cluster's monitors and a secret of libvirt's.",
                "Leave the name out (--as), and define a domain on the images by hand.",
            )

    def _plan(self) -> Iterator[Copy]:
        for disk in self.disks:
            if (device := self.devices.get(disk.target)) is not None:
                yield Copy(disk.target, disk, device, device, "raw", device=True)
            elif (image := self.images.get(disk.target)) is not None:
                partial, final = Path(f"rbd:{image.pool}/{image.partial}"), Path(str(image))
                yield Copy(disk.target, disk, partial, final, "raw", image=image)
            elif self.request.mode == "chain":
                yield from self._links(disk)
            else:
                name = f"{disk.target}.{self.request.format}"
                yield Copy(
                    disk.target, disk, self._partial(name), self._final(name), self.request.format
                )

    def _links(self, disk: PointDisk) -> Iterator[Copy]:
        """The images of a chain, the point's own first, each named after the point it is of."""
        if disk.backing:
            raise InvalidRequest(
                f"mode: disk {disk.target} of point {self.point.id} (sync top) stands on images "
                "outside the repository.",
                "Restore it with --mode flatten.",
            )
        links = self.run.draft.setdefault("links", {})
        if self.run.phase == "planned":
            # In the journal: a merge may make the chain shorter while it is copied.
            links[disk.target] = [image.parent.name for image in self.chain(disk)]
        files = [f"{disk.target}.qcow2"] + [
            f"{disk.target}.{depth}-{point}.qcow2"
            for depth, point in enumerate(links[disk.target])
            if depth
        ]
        for depth, (name, below) in enumerate(zip(files, [*files[1:], ""], strict=True)):
            yield Copy(
                f"{disk.target}.{depth}" if depth else disk.target,
                disk,
                self._partial(name),
                self._final(name),
                "qcow2",
                flat=False,
                depth=depth,
                below=below,
            )

    def _partial(self, name: str) -> Path:
        return self._final(f".{name}.{self.tag}.partial")

    def _final(self, name: str) -> Path:
        assert self.to is not None  # without, every disk has a device
        return self.to / name

    def _needed(self, copy: Copy) -> int:
        if copy.flat:
            return self.needed(copy.disk)
        return self.chain(copy.disk)[copy.depth].stat().st_blocks * 512

    def _new_disks(self) -> dict[str, NewDisk]:
        return {
            copy.disk.target: NewDisk(str(copy.final), copy.format, device=copy.device)
            for copy in self.copies
            if not copy.depth
        }

    # -- bad input ----------------------------------------------------------------------------

    def _refuse_overwriting(self) -> None:
        # Once published, the partial is gone and the final file is ours.
        done = self.run.phase in ("copied", "committed")
        there = [
            str(copy.final)
            for copy in self.copies
            if copy.is_file
            and os.path.lexists(copy.final)
            and (
                not done
                or (
                    copy.partial.exists()
                    and not os.path.samestat(copy.partial.lstat(), copy.final.lstat())
                )
            )
        ]
        if there:
            raise DestinationExists(
                f"Already there: {', '.join(there)}.",
                "Remove them, or restore into another directory.",
            )

    def _release(self) -> None:
        while self._claims:
            os.close(self._claims.pop())
