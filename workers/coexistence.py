"""Whether somebody else is at work on a domain: detected before a backup, not fought with."""

from __future__ import annotations

from collections.abc import Sequence

from workers.disks import Disk
from workers.hypervisor import Hypervisor, LibvirtMonitor

__all__ = ["require_quiet"]


def require_quiet(hypervisor: Hypervisor, monitor: LibvirtMonitor, disks: Sequence[Disk]) -> None:
    """See that nobody else is at work on the domain or on one of ``disks``.

    :raises DomainBusy: somebody is; the message names the operation and how far it is, the mend
        what to wait for or which command ends it.
    """
