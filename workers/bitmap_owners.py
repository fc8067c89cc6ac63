"""Whose a dirty bitmap is: virtvault's, libvirt's, or an operator's or another tool's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import libvirt

from virtvault.errors import ProtectedBitmap, UnknownBitmap, VirtvaultError, WorkFailed
from workers.bitmap_names import parse
from workers.disks import Disk
from workers.engine import Engine
from workers.repository import open_repository

__all__ = ["Owners", "owners_of", "require_user_bitmap"]

# libvirt's temporary ones: libvirt-tmp-activewrite (block commit), libvirt-tmp-size-xml (the size
# of a backup's target) and libvirt-migration-<disk>. Source: qemu_block.c, qemu_backup.c and
# qemu_migration.c of libvirt 9.
LIBVIRT_PREFIX = "libvirt-"
# Of a backup of ours, for as long as it runs.
TEMPORARY = "virtvault-"
# libvirt runs no backup of this domain, or the domain is shut off.
NO_BACKUP = (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID)


@dataclass(frozen=True)
class Owners:
    """What it takes to tell from a bitmap's name whose it is, for one domain.

    ``repositories`` maps their ids to names. ``checkpoints`` are libvirt's. ``libvirt_backup`` is
    true while a backup job of libvirt's own runs.
    """

    repositories: Mapping[str, str] = field(default_factory=dict)
    checkpoints: frozenset[str] = frozenset()
    libvirt_backup: bool = False

    def of(self, name: str, target: str) -> tuple[str, str]:
        """``owner`` and ``purpose`` of :class:`virtvault.models.BitmapInfo`."""
        if (ours := parse(name)) is not None:
            known = self.repositories.get(ours.repository, ours.repository)
            if not ours.point:
                return "virtvault", "unknown point"
            of = f"{ours.kind} of point" if ours.kind else "point"
            return "virtvault", f"{of} {ours.point}, repository {known}"
        if name.startswith(TEMPORARY):
            return "virtvault", "temporary, of a backup"
        if name in self.checkpoints:
            return "libvirt", f"checkpoint {name}"
        # A push backup keeps its bitmap on the disk for as long as it runs.
        if name.startswith(LIBVIRT_PREFIX) or (self.libvirt_backup and name == f"backup-{target}"):
            return "libvirt", "temporary, of a job it runs"
        return "user", ""

    def reserved_for(self, name: str, target: str) -> str:
        """Who may want to make a bitmap of that name, empty where that is the user alone."""
        owner, _ = replace(self, libvirt_backup=True).of(name, target)
        return "" if owner == "user" else owner


def owners_of(engine: Engine, uuid: str) -> Owners:
    """The owners of a domain's bitmaps as they are now."""
    repositories = {}
    for name in engine.settings.repositories:
        # One that is not there now is shown by its id.
        with contextlib.suppress(VirtvaultError):
            repositories[open_repository(engine.settings, name).id] = name

    def read(connection: libvirt.virConnect) -> Owners:
        domain = connection.lookupByUUIDString(uuid)
        checkpoints = frozenset(each.getName() for each in domain.listAllCheckpoints())
        return Owners(repositories, checkpoints, _backs_up(domain))

    return engine.hypervisor.call("checkpoints of the domain", read)


def require_user_bitmap(
    engine: Engine, uuid: str, domain: str, disks: Iterable[Disk], name: str
) -> None:
    """See that a backup may copy from a bitmap on every disk and clear it.

    :raises ProtectedBitmap: it is virtvault's or libvirt's.
    :raises UnknownBitmap: a disk's active image has none of that name.
    :raises WorkFailed: it has missed writes, or is in use.
    """
    owners = owners_of(engine, uuid)
    for disk in disks:
        bitmaps = disk.layers[0].bitmaps if disk.layers else {}
        owner, purpose = owners.of(name, disk.target)
        if owner != "user":
            raise ProtectedBitmap(
                f"Bitmap {name} is {owner}'s own ({purpose}); --bitmap takes one of yours, and "
                "clears it.",
                "Leave --bitmap out: incrementals use virtvault's own bitmaps by themselves.",
            )
        if name not in bitmaps:
            yours = [n for n in bitmaps if owners.of(n, disk.target)[0] == "user"]
            raise UnknownBitmap(
                f"Disk {disk.target} of domain {domain} has no bitmap {name!r} on its active "
                "image.",
                f"It has {', '.join(yours) or 'none of yours'}; `virtvault bitmaps add` makes one.",
            )
        if trouble := bitmaps[name].trouble:
            raise WorkFailed(
                f"Bitmap {name} on disk {disk.target} of domain {domain} {trouble}.",
                "Remove it and add it anew, then take a full with --bitmap.",
            )


def _backs_up(domain: libvirt.virDomain) -> bool:
    try:
        domain.backupGetXMLDesc()
    except libvirt.libvirtError as error:
        if error.get_error_code() in NO_BACKUP:
            return False
        raise
    return True
