"""What is so at this moment: progress, hosts, domains, disks, bitmaps, jobs, events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DiskProgress:
    """One block job: bytes done and to do, its QMP status (``running``, ``paused``, …)."""

    target: str
    done: int
    total: int
    status: str


@dataclass(frozen=True)
class Progress:
    """The latest sample of a running task. ``phase`` names the step it is in.

    ``domain`` is the domain's name, ``rate`` bytes per second over the last samples, ``eta``
    seconds (-1: not known yet). ``exports`` maps disk targets to the NBD URLs of an open export.
    """

    task_id: str
    phase: str
    done: int = 0
    total: int = 0
    rate: float = 0.0
    eta: float = -1.0
    disks: tuple[DiskProgress, ...] = ()
    updated: str = ""
    instant: str = ""
    domain: str = ""
    exports: dict[str, str] = field(default_factory=dict)

    @property
    def percent(self) -> float:
        """0 to 100; 0 while the total is not known."""
        return min(100.0, 100.0 * self.done / self.total) if self.total else 0.0


@dataclass(frozen=True)
class DiskInfo:
    """One disk of a domain as an operator sees it. ``skip`` says why it cannot be backed up."""

    target: str
    bus: str
    format: str
    source: str
    virtual_size: int
    persistent_bitmaps: bool
    skip: str = ""
    bitmaps: tuple[str, ...] = ()


@dataclass(frozen=True)
class BitmapInfo:
    """One dirty bitmap of a disk.

    ``owner`` is ``virtvault``, ``libvirt`` or ``user`` (an operator or another tool), ``purpose``
    what the owner has it for. ``granularity`` is bytes per bit; ``dirty`` the bytes it marks, None
    where that cannot be told (domain shut off). ``state`` is ``recording``, ``disabled``, ``busy``
    (in use by a block job) or ``inconsistent``. ``image`` is the file it lives on, ``active``
    false where that is an image further down the disk's backing chain.
    """

    target: str
    name: str
    owner: str
    purpose: str
    granularity: int
    dirty: int | None
    persistent: bool
    state: str
    image: str
    active: bool


@dataclass(frozen=True)
class BitmapChanges:
    """What an ``add``, ``clear`` or ``remove`` has done.

    ``bitmaps`` are those added, as they are now, or those cleared or removed, as they were.
    ``skipped`` maps disk targets to why they were left out.
    """

    domain: str
    action: str
    bitmaps: tuple[BitmapInfo, ...]
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RepositoryInfo:
    """One repository as a hypervisor sees it. ``why`` says why it cannot be used, else empty.

    ``free`` and ``size`` in bytes, -1 where that is not known.
    """

    name: str
    id: str = ""
    type: str = "directory"
    free: int = -1
    size: int = -1
    why: str = ""


@dataclass(frozen=True)
class HostInfo:
    """What a hypervisor's worker last said of itself. ``alive``: within its heartbeat's time.

    ``trouble`` says why its libvirt does not answer, empty where it does.
    """

    host: str
    alive: bool
    seen: str
    libvirt: str = ""
    qemu: str = ""
    domains: int = 0
    repositories: tuple[str, ...] = ()
    storage: tuple[RepositoryInfo, ...] = ()
    trouble: str = ""


@dataclass(frozen=True)
class DomainInfo:
    """One domain of a hypervisor.

    ``state`` is libvirt's word for it, ``migrating`` where it is paused for a migration; or
    ``unreachable`` where its hypervisor is gone and ``unknown`` where that one's libvirt does not
    answer: it was there last. ``targets`` are its disks, ``labels`` those of its libvirt metadata.
    ``transient`` domains are not defined: they are gone when they end. ``active`` is when its
    worker saw it running last; empty while it is, and where the worker never did.
    """

    name: str
    uuid: str
    host: str
    state: str
    disks: int = 0
    targets: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    transient: bool = False
    active: str = ""


@dataclass(frozen=True)
class Inventory:
    """All that a hypervisor's worker says of it, at ``at``. ``trouble``: why libvirt does not say.

    With trouble the domains are those that were known last. ``default`` is the repository that
    is meant where none is named, empty where there is no such.
    """

    host: str
    at: str
    versions: dict[str, str]
    repositories: tuple[RepositoryInfo, ...]
    domains: tuple[DomainInfo, ...]
    default: str = ""
    trouble: str = ""


@dataclass(frozen=True)
class JobInfo:
    """One job of a host: ours (``task_id`` set) or somebody else's.

    ``done`` of ``total`` in the job's own unit (bytes of a block job), ``speed`` its limit in bytes
    per second (0: none), ``uuid`` its domain's, ``error`` why it failed where it has concluded.
    """

    host: str
    domain: str
    job: str
    type: str
    status: str
    done: int
    total: int
    speed: int
    task_id: str = ""
    uuid: str = ""
    error: str = ""


@dataclass(frozen=True)
class CheckLine:
    """One line of ``virtvault check``: ``ok``, ``warning`` or ``failed``, with the mend."""

    subject: str
    verdict: str
    detail: str
    mend: str = ""


@dataclass(frozen=True)
class Event:
    """One event of a domain, or of a hypervisor's watcher (``domain`` and ``uuid`` empty).

    ``event`` is QEMU's name in capitals (``BLOCK_JOB_COMPLETED``), ``at`` then QEMU's own time;
    or libvirt's word for a step of the domain's life (``started``, ``stopped``), ``at`` when it
    was heard. ``data`` is what QEMU sent with it (see its QMP reference), or libvirt's
    ``detail`` (``booted``, ``destroyed``).

    A watcher says of itself: ``WATCHER_CONNECTED``: it listens from now on, and events from
    ``missing_since`` (empty: not known, it has just been started) until now may be missing;
    ``WATCHER_DISCONNECTED``: it cannot listen, for ``reason``; ``WATCHER_MISSED``: it heard
    ``count`` more events up to ``at`` than it could keep.
    """

    at: str
    host: str
    event: str
    domain: str = ""
    uuid: str = ""
    data: dict[str, Any] = field(default_factory=dict)
