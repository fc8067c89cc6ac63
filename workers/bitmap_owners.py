"""Whose a dirty bitmap is: virtvault's, libvirt's, or an operator's or another tool's."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import libvirt

from virtvault.errors import VirtvaultError
from workers.engine import Engine
from workers.plan import BITMAP_PREFIX
from workers.repository import open_repository

__all__ = ["Owners", "owners_of"]

# libvirt's temporary ones: libvirt-tmp-activewrite (block commit), libvirt-tmp-size-xml (the size
# of a backup's target) and libvirt-migration-<disk>. Source: qemu_block.c, qemu_backup.c and
# qemu_migration.c of libvirt 9.
LIBVIRT_PREFIX = "libvirt-"
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
        if name.startswith(BITMAP_PREFIX):
            repository, _, point = name.removeprefix(BITMAP_PREFIX).partition(".")
            known = self.repositories.get(repository, repository)
            return "virtvault", f"point {point}, repository {known}" if point else "unknown point"
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


def _backs_up(domain: libvirt.virDomain) -> bool:
    try:
        domain.backupGetXMLDesc()
    except libvirt.libvirtError as error:
        if error.get_error_code() in NO_BACKUP:
            return False
        raise
    return True
