"""What long tasks return."""

from __future__ import annotations

from dataclasses import dataclass, field

from virtvault.models.points import PointDisk, Verdict


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
    """What a restore task returns.

    ``name`` and ``domain_uuid`` are those of the domain that was defined, or whose disks were
    replaced in place. ``booted`` is when an instant restore let its guest run.
    """

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
    name: str = ""
    domain_uuid: str = ""
    booted: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifyResult:
    """What a verify task returns: ``state`` is ``good``, or ``bad`` where any point is."""

    task_id: str
    host: str
    repository: str
    state: str
    started: str
    finished: str
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class ServeResult:
    """What serving a point returns once it has ended; ``state`` is ``closed`` or ``timed out``."""

    task_id: str
    point: str
    domain: str
    host: str
    repository: str
    state: str
    started: str
    finished: str


@dataclass(frozen=True)
class KeptPoint:
    """A point that stays, and every reason why (``last 1 of 3``, ``protected: …``)."""

    point: str
    domain: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class RemovedPoint:
    """A point that was removed (or would be), ``into`` the points its data was merged into.

    ``freed`` are the bytes it took in the repository.
    """

    point: str
    domain: str
    into: tuple[str, ...]
    freed: int


@dataclass(frozen=True)
class PruneResult:
    """What a prune task returns. ``postponed`` maps points that no rule keeps to why they stay."""

    task_id: str
    host: str
    repository: str
    state: str
    dry_run: bool
    started: str
    finished: str
    kept: tuple[KeptPoint, ...]
    removed: tuple[RemovedPoint, ...]
    postponed: dict[str, str] = field(default_factory=dict)


# What a long task returns.
Result = BackupResult | RestoreResult | ExportResult | VerifyResult | ServeResult | PruneResult
