"""What is asked of a hypervisor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
    instant before its first instruction, and lets it run. ``full_points`` and ``full_days`` make a
    full of an incremental whose chain has so many points, or whose full is so many days old; 0:
    never.
    """

    domain: str
    repository: str = ""
    sync: str = "auto"
    disks: tuple[str, ...] = ()
    speed: int = 0
    freeze: str = "auto"
    bitmap: str = ""
    start_paused: bool = False
    full_points: int = 0
    full_days: int = 0


@dataclass(frozen=True)
class RestoreRequest:
    """Bring the disks of ``point`` back, in one of three ways (``mode``).

    ``flatten`` writes one stand-alone image per disk; ``chain`` copies the images of its chain,
    backed by each other; ``instant`` boots a domain at once from overlays, and pulls the data in
    behind it.

    Where to: ``to`` is a directory, a name below one of the worker's configured ``restore_roots``
    or an absolute path that lies in one of them: a message cannot make a worker write anywhere
    else. ``devices`` maps disk targets to block devices (or ``rbd:POOL/IMAGE``) that take the
    place of files, each inside the worker's ``restore_devices``. ``name`` also defines a domain of
    that name, with a new uuid and new MAC addresses; ``start`` starts it. ``in_place`` replaces the
    disks of the point's own domain, which is shut off. ``disks`` empty means all. ``force``
    restores a point that a verify found bad.
    """

    point: str
    to: str = ""
    repository: str = ""
    mode: str = "flatten"
    format: str = "qcow2"
    disks: tuple[str, ...] = ()
    speed: int = 0
    name: str = ""
    start: bool = False
    in_place: bool = False
    devices: dict[str, str] = field(default_factory=dict)
    force: bool = False


@dataclass(frozen=True)
class VerifyRequest:
    """Read points back and say whether each is what it was when it was committed.

    ``points`` of one repository, oldest first or in any order; none, but a ``domain`` (uuid): the
    newest that domain has there. ``boot`` starts each as an isolated
    transient domain and waits up to ``boot_seconds`` for a sign of life. ``against_source``
    compares samples of what the newest point did not copy with the live domain; ``samples`` of
    64 KiB per disk.
    """

    points: tuple[str, ...] = ()
    repository: str = ""
    domain: str = ""
    boot: bool = False
    boot_seconds: int = 180
    against_source: bool = False
    samples: int = 256
    speed: int = 0


@dataclass(frozen=True)
class ServeRequest:
    """Serve each disk of ``point`` read-only over NBD until cancelled, or for ``seconds``.

    ``seconds`` 0 means until cancelled. ``disks`` empty means all.
    """

    point: str
    repository: str = ""
    disks: tuple[str, ...] = ()
    seconds: int = 0
    force: bool = False


@dataclass(frozen=True)
class RetentionRules:
    """What to keep of a domain's points; a point that any rule wants is kept.

    ``last`` keeps that many of the newest; ``hourly`` … ``yearly`` the newest of each of that many
    hours … years that have any (UTC; weeks are ISO weeks); ``within`` all not older than that many
    seconds. 0 keeps nothing by that rule.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: int = 0


@dataclass(frozen=True)
class PruneRequest:
    """Remove the points of a repository that ``rules`` do not keep, or just those in ``points``.

    ``domain`` is a uuid, empty for every domain in the repository. What kept points need is merged
    into them. ``dry_run`` only says what would be done. ``speed`` limits each merge.
    """

    repository: str = ""
    domain: str = ""
    rules: RetentionRules = RetentionRules()
    points: tuple[str, ...] = ()
    dry_run: bool = False
    speed: int = 0


@dataclass(frozen=True)
class Submission:
    """Long work as another service asks ``central`` for it: ``virtvault.submit``.

    ``task`` is one of the long tasks (``virtvault.backup``), ``request`` its request. ``host``
    empty means the one that fits: the domain's, or one that has the point's repository.
    ``callback`` is a URL that is told when the task has ended, of those that the central tier's
    settings allow. ``task_id`` empty means a new one; the same one again is the same task.
    """

    task: str
    request: dict[str, Any]
    host: str = ""
    callback: str = ""
    task_id: str = ""


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
