"""The data that crosses process borders: requests, points, results, progress.

Frozen dataclasses, all JSON-able by :func:`virtvault.schemas.dump`. Sizes are bytes, times are
UTC ISO 8601 strings with a ``Z``, speeds are bytes per second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "BackupRequest",
    "RestoreRequest",
    "BitmapRequest",
    "BackupResult",
    "BackingImage",
    "ExportResult",
    "ExportedDisk",
    "RestoreResult",
    "Result",
    "Point",
    "PointDisk",
    "RestoredDisk",
    "Progress",
    "DiskProgress",
    "HostInfo",
    "DomainInfo",
    "DiskInfo",
    "BitmapInfo",
    "BitmapChanges",
    "JobInfo",
    "CheckLine",
    "Event",
    "MANIFEST_VERSION",
    "SYNC_MODES",
    "FREEZE_MODES",
    "RESTORE_FORMATS",
    "WATCHER_CONNECTED",
    "WATCHER_DISCONNECTED",
    "WATCHER_MISSED",
]

MANIFEST_VERSION = 1
SYNC_MODES = ("auto", "full", "incremental", "top", "none")
FREEZE_MODES = ("auto", "always", "never")
RESTORE_FORMATS = ("qcow2", "raw")
# What a watcher says of itself: Event.event beside QEMU's and libvirt's own words.
WATCHER_CONNECTED = "WATCHER_CONNECTED"
WATCHER_DISCONNECTED = "WATCHER_DISCONNECTED"
WATCHER_MISSED = "WATCHER_MISSED"


@dataclass(frozen=True)
class BackupRequest:
    """One backup of one domain. ``disks`` empty means all that can be backed up.

    ``repository`` empty means the worker's default. ``sync``: ``auto`` and ``incremental`` copy
    what changed since the newest point where that is certain, ``full`` copies all, ``top`` the
    active layer alone, ``none`` copies nothing and serves the disks as they are at the instant.
    ``speed`` is a limit in bytes per second and disk, 0 for none. ``freeze``: ``auto`` uses the
    guest agent where it answers, ``always`` fails without it, ``never`` leaves it alone.
    ``bitmap`` names a dirty bitmap of the user's: what it marks is copied too, and it is cleared
    once the point is durable. ``start_paused`` starts a domain that is shut off, takes the
    instant before its first instruction, and lets it run.
    """

    domain: str
    repository: str = ""
    sync: str = "auto"
    disks: tuple[str, ...] = ()
    speed: int = 0
    freeze: str = "auto"
    bitmap: str = ""
    start_paused: bool = False


@dataclass(frozen=True)
class RestoreRequest:
    """Write the disks of ``point`` as stand-alone images into the directory ``to``.

    ``to`` is a name below one of the worker's configured ``restore_roots``, or an absolute path
    that lies in one of them: a message cannot make a worker write anywhere else.
    """

    point: str
    to: str
    repository: str = ""
    mode: str = "flatten"
    format: str = "qcow2"
    disks: tuple[str, ...] = ()
    speed: int = 0


@dataclass(frozen=True)
class BackingImage:
    """An image outside the repository that a ``top`` point needs: it must not have changed since.

    ``length`` in bytes and ``modified`` (nanoseconds since the epoch) are the file's own.
    """

    path: str
    format: str
    length: int
    modified: int


@dataclass(frozen=True)
class BitmapRequest:
    """List, add, clear or remove dirty bitmaps of a domain. ``disks`` empty means all that can.

    Listing and removing take a glob pattern as ``name`` too. ``granularity`` is bytes per bit, 0
    for QEMU's default. ``persistent`` None means wherever the image's format can. ``include_ours``
    lets a removal take virtvault's own: the next backup of such a disk is then a full.
    """

    domain: str
    name: str = "*"
    disks: tuple[str, ...] = ()
    granularity: int = 0
    persistent: bool | None = None
    include_ours: bool = False


@dataclass(frozen=True)
class PointDisk:
    """One disk inside a point.

    ``sync`` is what was done (``full``, ``incremental`` or ``top``), ``reason`` says why where
    that is not what was asked. ``witness`` are the bytes that the bitmap's witness counts, 0 where
    it has none. ``parent`` is the point id the image's backing file lies in (empty
    for a full). ``backing`` are the images a ``top`` needs, the nearest first.
    ``transferred`` counts the bytes the block job went through, ``stored`` the bytes the image
    takes in the repository, ``length`` its file's length. ``source`` is the file name of the
    active layer at the instant, ``source_format`` its driver, ``bitmap`` the dirty bitmap that
    counts from this point, ``persistent`` whether that bitmap survives a power cycle.
    """

    target: str
    file: str
    sync: str
    parent: str
    reason: str
    virtual_size: int
    transferred: int
    stored: int
    length: int
    source: str
    source_format: str
    bitmap: str
    persistent: bool
    backing: tuple[BackingImage, ...] = ()
    witness: int = 0


@dataclass(frozen=True)
class Point:
    """A recovery point: all its disks at one instant. This is the manifest's content.

    ``instant`` is when the guest's disks were as stored; ``paused_ms`` how long the guest's CPUs
    stood for it; ``frozen_ms`` how long its file systems were frozen. ``consistency`` is
    ``agent-frozen`` or ``crash-consistent``. ``skipped`` maps disk targets to why they are not in
    the point. ``isolated`` is true where no fault of the backup could reach the guest; ``state``
    is the domain's at the instant: ``running``, ``paused`` or ``shut off``.
    """

    id: str
    repository: str
    repository_id: str
    task_id: str
    domain: str
    uuid: str
    host: str
    instant: str
    started: str
    finished: str
    consistency: str
    paused_ms: float
    frozen_ms: float
    isolated: bool
    disks: tuple[PointDisk, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    state: str = "running"
    schema_version: int = MANIFEST_VERSION


@dataclass(frozen=True)
class BackupResult:
    """What a backup task returns. ``state`` is ``complete``; anything else raises."""

    task_id: str
    point: str
    domain: str
    uuid: str
    host: str
    repository: str
    state: str
    consistency: str
    instant: str
    paused_ms: float
    frozen_ms: float
    isolated: bool
    started: str
    finished: str
    job_seconds: float
    disks: tuple[PointDisk, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportedDisk:
    """One disk of a snapshot export: its read-only NBD ``url``, and the bytes its scratch took."""

    target: str
    url: str
    virtual_size: int
    scratch: int


@dataclass(frozen=True)
class ExportResult:
    """What a backup with ``sync=none`` returns once it was closed by hand.

    ``instant`` to ``finished`` are as in :class:`Point`. Anything else that ends it raises.
    """

    task_id: str
    domain: str
    uuid: str
    host: str
    state: str
    consistency: str
    instant: str
    paused_ms: float
    frozen_ms: float
    started: str
    finished: str
    exports: tuple[ExportedDisk, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RestoredDisk:
    """One image written by a restore: its path on the worker, format, bytes on disk."""

    target: str
    path: str
    format: str
    virtual_size: int
    stored: int


@dataclass(frozen=True)
class RestoreResult:
    """What a restore task returns."""

    task_id: str
    point: str
    domain: str
    host: str
    repository: str
    mode: str
    to: str
    state: str
    started: str
    finished: str
    disks: tuple[RestoredDisk, ...]


# What a long task returns.
Result = BackupResult | RestoreResult | ExportResult


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
class HostInfo:
    """What a hypervisor's worker last said of itself. ``alive``: within its heartbeat's time."""

    host: str
    alive: bool
    seen: str
    libvirt: str = ""
    qemu: str = ""
    domains: int = 0
    repositories: tuple[str, ...] = ()


@dataclass(frozen=True)
class DomainInfo:
    """One domain of a hypervisor. ``state`` is libvirt's word for it."""

    name: str
    uuid: str
    host: str
    state: str
    disks: int = 0


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
