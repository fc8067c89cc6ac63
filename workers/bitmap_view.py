"""A domain's dirty bitmaps at one moment, whether it runs or is shut off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from virtvault.errors import UnknownDisk
from virtvault.models import BitmapInfo
from workers import disks as disk_view
from workers import offline
from workers.bitmap_changes import Change, in_images, in_qemu
from workers.bitmap_owners import Owners, owners_of
from workers.disks import Bitmap, Disk, Graph, Layer
from workers.engine import Engine
from workers.monitor import limited

__all__ = ["View", "image_kind", "look"]


@dataclass(frozen=True)
class View:
    """A domain's disks and bitmaps at one moment, and the way to change them.

    ``dirty`` maps (node, bitmap) to the bytes it marks.
    """

    domain: str
    uuid: str
    running: bool
    disks: list[Disk]
    dirty: Mapping[tuple[str, str], int]
    owners: Owners
    apply: Callable[[Sequence[Change]], None]

    def disk(self, target: str) -> Disk:
        """The disk of that target."""
        return next(disk for disk in self.disks if disk.target == target)

    def info(self, disk: Disk, layer: Layer, bitmap: Bitmap) -> BitmapInfo:
        """A bitmap as an operator sees it."""
        owner, purpose = self.owners.of(bitmap.name, disk.target)
        return BitmapInfo(
            target=disk.target,
            name=bitmap.name,
            owner=owner,
            purpose=purpose,
            granularity=bitmap.granularity,
            dirty=self.dirty.get((layer.node, bitmap.name)),
            persistent=bitmap.persistent,
            state=_state(bitmap),
            image=layer.filename,
            active=layer is disk.layers[0],
        )

    def choose(self, wanted: Sequence[str]) -> tuple[list[Disk], dict[str, str]]:
        """The disks meant and, where all that can were, why the others cannot have bitmaps.

        :raises UnknownDisk: a wanted one is not there or cannot, or none can.
        """
        known = {disk.target: disk for disk in self.disks}
        skipped = {target: why for target, disk in known.items() if (why := self._why_not(disk))}
        for target in wanted:
            if target not in known:
                raise UnknownDisk(
                    f"Domain {self.domain} has no disk {target!r}.",
                    f"It has {', '.join(known) or 'none'}.",
                )
            if target in skipped:
                raise UnknownDisk(
                    f"Disk {target} of domain {self.domain} cannot have bitmaps now: "
                    f"{skipped[target]}.",
                    "Leave it out.",
                )
        if not known.keys() - skipped.keys():
            raise UnknownDisk(
                f"Domain {self.domain} has no disk that can have bitmaps now"
                + "".join(f"; {target}: {why}" for target, why in skipped.items())
                + ".",
                "`virtvault disks` shows its disks.",
            )
        targets = set(wanted) or known.keys() - skipped.keys()
        return [d for d in self.disks if d.target in targets], {} if wanted else skipped

    def _why_not(self, disk: Disk) -> str:
        if disk.skip or disk.fault:
            return disk.skip or disk.fault
        if not self.running and not disk.persistent:
            return f"{image_kind(disk)} cannot store bitmaps, and the domain is shut off"
        return ""


def look(engine: Engine, domain: str) -> View:
    """See a domain's bitmaps as they are now.

    :raises UnknownDomain: libvirt has none of that name.
    """
    found = engine.hypervisor.domain(domain)
    name, uuid = found.name(), found.UUIDString()
    owners = owners_of(engine, uuid)
    if engine.hypervisor.is_active(uuid):
        monitor = engine.hypervisor.monitor(found)
        disks = disk_view.discover(monitor, monitor.xml())
        dirty = {
            (node, bitmap["name"]): bitmap["count"]
            for node, entry in Graph(monitor).nodes.items()
            for bitmap in entry.get("dirty-bitmaps", ())
            if "name" in bitmap
        }
        return View(name, uuid, True, disks, dirty, owners, lambda c: in_qemu(monitor, c))
    xml, seconds = engine.hypervisor.inactive_xml(uuid), engine.settings.qmp_timeout
    disks = limited(lambda: offline.discover(xml), seconds, f"look at the images of {name}")
    return View(name, uuid, False, disks, {}, owners, lambda c: in_images(c, seconds))


def _state(bitmap: Bitmap) -> str:
    if bitmap.inconsistent:
        return "inconsistent"
    if bitmap.busy:
        return "busy"
    return "recording" if bitmap.recording else "disabled"


def image_kind(disk: Disk) -> str:
    """``a raw image`` and the like, for sentences."""
    return "a qcow2 image of version 2" if disk.format == "qcow2" else f"a {disk.format} image"
