"""The data that crosses process borders: requests, points, results, progress.

Frozen dataclasses, all JSON-able by :func:`virtvault.schemas.dump`. Sizes are bytes, times are
UTC ISO 8601 strings with a ``Z``, speeds are bytes per second.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "BackupRequest",
    "RestoreRequest",
    "BackupResult",
    "RestoreResult",
    "Point",
    "PointDisk",
    "RestoredDisk",
    "Progress",
    "DiskProgress",
    "HostInfo",
    "DomainInfo",
    "DiskInfo",
    "JobInfo",
    "CheckLine",
    "MANIFEST_VERSION",
    "SYNC_MODES",
    "FREEZE_MODES",
    "RESTORE_FORMATS",
]

MANIFEST_VERSION = 1
SYNC_MODES = ("auto", "full", "incremental")
FREEZE_MODES = ("auto", "always", "never")
RESTORE_FORMATS = ("qcow2", "raw")


@dataclass(frozen=True)
class BackupRequest:
    """One backup of one domain. ``disks`` empty means all that can be backed up.

    ``repository`` empty means the worker's default. ``speed`` is a limit in bytes per second and
    disk, 0 for none. ``freeze``: ``auto`` uses the guest agent where it answers, ``always`` fails
    without it, ``never`` leaves it alone.
    """

    domain: str
    repository: str = ""
    sync: str = "auto"
    disks: tuple[str, ...] = ()
    speed: int = 0
    freeze: str = "auto"


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
class PointDisk:
    """One disk inside a point.

    ``sync`` is what was done (``full`` or ``incremental``), ``reason`` says why where that is not
    what was asked. ``parent`` is the point id the image's backing file lies in (empty for a full).
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


@dataclass(frozen=True)
class Point:
    """A recovery point: all its disks at one instant. This is the manifest's content.

    ``instant`` is when the guest's disks were as stored; ``paused_ms`` how long the guest's CPUs
    stood for it; ``frozen_ms`` how long its file systems were frozen. ``consistency`` is
    ``agent-frozen`` or ``crash-consistent``. ``skipped`` maps disk targets to why they are not in
    the point. ``isolated`` is true where no fault of the backup could reach the guest.
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
    seconds (-1: not known yet).
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
    """One block job of a host: ours (``task_id`` set) or somebody else's."""

    host: str
    domain: str
    job: str
    type: str
    status: str
    done: int
    total: int
    speed: int
    task_id: str = ""


@dataclass(frozen=True)
class CheckLine:
    """One line of ``virtvault check``: ``ok``, ``warning`` or ``failed``, with the mend."""

    subject: str
    verdict: str
    detail: str
    mend: str = ""
