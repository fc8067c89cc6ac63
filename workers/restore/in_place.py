"""A restore in place: the images of the point's own domain, which is shut off, replaced.

New images are written beside the old ones, which stay until all new ones are whole and durable.
Then every old one is moved aside before the first new one takes its place: were the worker killed
in between, the domain finds an image missing and does not start; it never starts with one disk of
then and one of now. The next worker finishes the moves, under the same locks; where none was made
and the domain was started since, it takes the new images away again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from virtvault.errors import (
    DomainBusy,
    DomainStopped,
    InvalidRequest,
    UnknownDisk,
    UnknownDomain,
    VirtvaultError,
    WorkFailed,
)
from virtvault.models import RestoredDisk
from workers import definitions, offline
from workers.disks import Disk
from workers.domain_xml import encrypted_in, policies_of, settled
from workers.images import lock, require_room
from workers.journal import sync_directory
from workers.restore.copying import Copy, Copying, give_owner_of
from workers.restore.story import stored

__all__ = ["InPlace"]

FORMATS = ("qcow2", "raw")


class InPlace(Copying):
    """The run holds the domain, as a backup would: neither meets the other."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        if self.request.mode != "flatten":
            raise InvalidRequest(
                f"mode: {self.request.mode} does not go with in_place, which writes flat images.",
                "Leave the mode out, or restore elsewhere.",
            )
        self._hypervisor = self.engine.hypervisor
        try:
            self.name = self._hypervisor.domain(self.point.uuid).name()
        except UnknownDomain as error:
            raise UnknownDomain(
                f"{self.settings.host} has no domain {self.point.uuid}, of which point "
                f"{self.point.id} is ({self.point.domain}).",
                "In place a point goes back to its own domain only: name its host (--host), or "
                "restore it as a new one (--as NAME).",
            ) from error
        self.run.draft |= {"name": self.name, "uuid": self.point.uuid}
        self.copies = list(self._plan())

    def locks(self) -> list[str]:
        """See :meth:`Story.locks`."""
        return [self.point.uuid]

    def what(self) -> str:
        """See :meth:`Story.what`."""
        return f"domain {self.name}"

    def require(self) -> None:
        """See :meth:`Copying.require`."""
        self._require_shut_off()
        if why := definitions.why_images_are_kept(self._hypervisor, self.point.uuid):
            raise InvalidRequest(
                f"The disks of domain {self.name} cannot be replaced: {why}.",
                "Or restore it as a new domain (--as NAME).",
            )
        for descriptor in locked(copy.final for copy in self.copies):
            os.close(descriptor)
        self._require_own_images()
        for copy in self.copies:
            if not copy.final.parent.is_dir():
                raise InvalidRequest(
                    f"{copy.final.parent}, where disk {copy.name} of domain {self.name} lies, is "
                    "not there.",
                    "Mount or make it, or restore elsewhere.",
                )
        require_room((copy.final.parent, self.needed(copy.disk)) for copy in self.copies)
        self._note()

    def conclude(self) -> None:
        """See :meth:`Copying.conclude`."""
        if self.run.phase == "copied":
            self.sync(self.copies)
            for copy in self.copies:
                if copy.final.exists():
                    give_owner_of(copy.final, copy.partial)
        try:
            if self.run.phase != "committed":
                self._swap()
            self._settle()
        except (OSError, VirtvaultError) as error:
            if self.run.phase == "copied":
                raise
            raise WorkFailed(
                f"The new images of domain {self.name} are whole, but not all is in its place: "
                f"{error}",
                "Keep the domain shut off. Mend the cause and restart the worker: it goes on with "
                f"task {self.run.task_id}.",
            ) from error
        for copy in self.copies:
            self._aside(copy).unlink(missing_ok=True)
            sync_directory(copy.final.parent)

    def keeps(self, error: BaseException) -> bool:
        """See :meth:`Story.keeps`: once it has begun, forward alone ends with the domain whole."""
        return self.run.phase in ("swapping", "committed")

    def restored(self) -> list[RestoredDisk]:
        """See :meth:`Story.restored`."""
        return [
            RestoredDisk(
                target=copy.name,
                path=str(copy.final),
                format=copy.format,
                virtual_size=copy.disk.virtual_size,
                stored=stored(copy.final),
            )
            for copy in self.copies
        ]

    # -- the swap -----------------------------------------------------------------------------

    def _swap(self) -> None:
        """Check for the last time, holding all images old and new, and move them.

        :raises VirtvaultError: nothing was moved where the phase is ``copied``.
        """
        if self.run.phase == "swapping" and all(map(self._is_in_place, self.copies)):
            self.phase("committed")  # the domain may run on them by now
            return
        if self.run.phase == "swapping" and not self._has_moved():
            self.phase("copied")
        held = locked(path for copy in self.copies for path in (copy.final, copy.partial))
        try:
            self._require_shut_off()
            if self.run.phase == "copied":
                self.ties.check(self.engine.journal)
                inodes = {copy.name: copy.partial.stat().st_ino for copy in self.copies}
                self.run.draft["inodes"] = inodes
                self.phase("swapping")
            self._require_ours()
            self._move()
        except OSError as error:
            if self._has_moved():
                raise
            self.phase("copied")
            raise WorkFailed(
                f"The images of domain {self.name} cannot be moved: {error}. None was.",
                "Mend that, and restore again.",
            ) from error
        finally:
            for descriptor in held:
                os.close(descriptor)

    def _has_moved(self) -> bool:
        """Whether a move was made."""
        return any(self._aside(copy).exists() or not copy.partial.exists() for copy in self.copies)

    def _is_in_place(self, copy: Copy) -> bool:
        return not copy.partial.exists() and self._is_new(copy, copy.final)

    def _is_new(self, copy: Copy, path: Path) -> bool:
        """Whether a file is the image that this run has made."""
        inode = self.run.draft.get("inodes", {}).get(copy.name)
        return path.exists() and path.stat().st_ino == inode

    def _require_ours(self) -> None:
        """:raises WorkFailed: somebody has moved images meanwhile; none of theirs is touched."""
        for copy in self.copies:
            aside = self._aside(copy)
            if not self._is_new(copy, copy.partial if copy.partial.exists() else copy.final):
                raise WorkFailed(
                    f"{copy.partial} is not the new image of disk {copy.name} any more, nor is "
                    f"{copy.final}: somebody has moved or replaced it.",
                    f"Put it back under either name; the old one is {aside}.",
                )
            if copy.partial.exists() and copy.final.exists() and aside.exists():
                raise WorkFailed(
                    f"{copy.final} was put in the place of disk {copy.name} while its images were "
                    f"being replaced: the old one is {aside}, the new one {copy.partial}.",
                    f"Move {copy.final} away.",
                )

    def _move(self) -> None:
        # Old ones aside, all of them, before any new one: see above.
        for copy in self.copies:
            if copy.partial.exists() and copy.final.exists():
                copy.final.rename(self._aside(copy))
                sync_directory(copy.final.parent)
        for copy in self.copies:
            if copy.partial.exists():
                copy.partial.rename(copy.final)
                sync_directory(copy.final.parent)
        self.phase("committed")

    def _settle(self) -> None:
        """A chain that its XML names belongs to the old image."""
        xml = self._hypervisor.inactive_xml(self.point.uuid)
        policies = policies_of(xml, {copy.name: copy for copy in self.copies})
        definitions.rewrite(self._hypervisor, xml, settled(xml, policies))

    def _aside(self, copy: Copy) -> Path:
        return copy.final.with_name(f"{copy.final.name}.before-{self.tag}")

    # -- its plan -----------------------------------------------------------------------------

    def _plan(self) -> Iterator[Copy]:
        places = self.run.draft.get("places")
        if places is None or self.run.phase == "planned":
            places = self.run.draft["places"] = self._places()
        for disk in self.disks:
            path, format_ = places[disk.target]
            final = Path(path)
            partial = final.with_name(f".{final.name}.{self.tag}.partial")
            yield Copy(disk.target, disk, partial, final, format_)

    def _places(self) -> dict[str, tuple[str, str]]:
        """By target the file of each chosen disk, and its format."""
        there = {disk.target: disk for disk in self._domain_disks()}
        encrypted = encrypted_in(self._hypervisor.inactive_xml(self.point.uuid))
        found = {}
        for disk in self.disks:
            if disk.target not in there:
                raise UnknownDisk(
                    f"Domain {self.name} has no disk {disk.target} (any more).",
                    f"It has {', '.join(there) or 'none'}; restore it elsewhere (--to).",
                )
            is_ = there[disk.target]
            if disk.target in encrypted:
                raise InvalidRequest(
                    f"Disk {disk.target} of domain {self.name} is encrypted, and a point has what "
                    "the guest sees of it, in plain: it would be written so.",
                    "Restore it elsewhere (--to) and encrypt it again (`qemu-img convert`), or "
                    "choose other disks (--disk).",
                )
            if (
                not is_.source
                or offline.is_block_device(is_.source)
                or is_.format not in FORMATS
                or "slice" in is_.fault
            ):
                raise InvalidRequest(
                    f"Disk {disk.target} of domain {self.name} is {is_.source or is_.fault or 'no'}"
                    f" ({is_.format}): in place only qcow2 and raw files are replaced.",
                    f"Restore it onto its device with --device {disk.target}=PATH, or elsewhere "
                    "(--to).",
                )
            # Where a link leads: the link stays.
            found[disk.target] = (os.path.realpath(is_.source), is_.format)
        return found

    def _domain_disks(self) -> list[Disk]:
        return offline.discover(self._hypervisor.inactive_xml(self.point.uuid))

    def _require_shut_off(self) -> None:
        if self._hypervisor.is_active(self.point.uuid):
            raise DomainBusy(
                f"Domain {self.name} runs: its disks cannot be replaced under it.",
                "Shut it off, or restore the point as a new domain (--as NAME).",
            )

    def _require_own_images(self) -> None:
        """:raises InvalidRequest: another domain stands on an image, as a linked clone does."""
        ours = {copy.final.resolve() for copy in self.copies}
        for other in self._hypervisor.domains():
            if other.uuid == self.point.uuid:
                continue
            try:
                disks = offline.discover(self._hypervisor.inactive_xml(other.uuid))
            except DomainStopped:
                continue  # undefined meanwhile
            images = [Path(d.source) for d in disks if d.source]
            images += [Path(layer.filename) for d in disks for layer in d.layers]
            if shared := ours & {image.resolve() for image in images}:
                raise InvalidRequest(
                    f"Domain {other.name} uses {shared.pop()}, too, which would be replaced.",
                    "Restore the point as a new domain (--as NAME).",
                )

    def _note(self) -> None:
        self.note("the next backup of each replaced disk is a full: its bitmaps went with it")
        there = {disk.target: disk for disk in self._domain_disks()}
        for disk in self.disks:
            old = there[disk.target]
            if len(old.layers) > 1:
                self.note(
                    f"{disk.target}: a flat image now; what its old one stood on stays, unused: "
                    + ", ".join(layer.filename for layer in old.layers[1:])
                )
            if old.virtual_size and old.virtual_size != disk.virtual_size:
                self.note(
                    f"{disk.target}: {disk.virtual_size} bytes as at the point; it had "
                    f"{old.virtual_size}"
                )


def locked(images: Iterable[Path]) -> list[int]:
    """Hold those images that are there as QEMU would; gives the descriptors that do.

    :raises DomainBusy: one is in use.
    """
    held: list[int] = []
    try:
        for image in images:
            if image.exists():
                held.append(lock(image))
    except BaseException:
        for descriptor in held:
            os.close(descriptor)
        raise
    return held
