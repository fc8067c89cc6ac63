"""The data that crosses process borders: requests, points, results, progress.

Frozen dataclasses, all JSON-able by :func:`virtvault.schemas.dump`. Sizes are bytes, times are
UTC ISO 8601 strings with a ``Z``, speeds are bytes per second.
"""

from __future__ import annotations

from virtvault.models.fleet import (
    Alert,
    DomainStatus,
    FleetStatus,
    FleetTotals,
    RunInfo,
    SlotRecord,
)
from virtvault.models.live import (
    BitmapChanges,
    BitmapInfo,
    CheckLine,
    DiskInfo,
    DiskProgress,
    DomainInfo,
    Event,
    HostInfo,
    Inventory,
    JobInfo,
    Progress,
    RepositoryInfo,
)
from virtvault.models.points import (
    MANIFEST_OLDEST,
    MANIFEST_VERSION,
    BackingImage,
    BootReport,
    DiskVerdict,
    Point,
    PointDisk,
    PointStatus,
    SourceReport,
    Verdict,
)
from virtvault.models.policies import (
    FullEvery,
    Limits,
    MatchedDomain,
    PlannedRun,
    Policy,
    PolicyDocument,
    PolicyVersion,
    Preview,
    Schedule,
    Selector,
)
from virtvault.models.requests import (
    BackupRequest,
    BitmapRequest,
    PruneRequest,
    RestoreRequest,
    RetentionRules,
    ServeRequest,
    Submission,
    VerifyRequest,
)
from virtvault.models.results import (
    BackupResult,
    ExportedDisk,
    ExportResult,
    KeptPoint,
    PruneResult,
    RemovedPoint,
    RestoredDisk,
    RestoreResult,
    Result,
    ServeResult,
    VerifyResult,
)

__all__ = [
    "BackupRequest",
    "RestoreRequest",
    "VerifyRequest",
    "ServeRequest",
    "RetentionRules",
    "PruneRequest",
    "Submission",
    "BitmapRequest",
    "BackingImage",
    "PointDisk",
    "Point",
    "PointStatus",
    "DiskVerdict",
    "BootReport",
    "SourceReport",
    "Verdict",
    "BackupResult",
    "ExportedDisk",
    "ExportResult",
    "RestoredDisk",
    "RestoreResult",
    "VerifyResult",
    "ServeResult",
    "KeptPoint",
    "RemovedPoint",
    "PruneResult",
    "Result",
    "DiskProgress",
    "Progress",
    "DiskInfo",
    "BitmapInfo",
    "BitmapChanges",
    "HostInfo",
    "RepositoryInfo",
    "DomainInfo",
    "Inventory",
    "JobInfo",
    "CheckLine",
    "Event",
    "Selector",
    "Schedule",
    "FullEvery",
    "Limits",
    "Policy",
    "PolicyDocument",
    "PolicyVersion",
    "PlannedRun",
    "MatchedDomain",
    "Preview",
    "RunInfo",
    "SlotRecord",
    "DomainStatus",
    "FleetTotals",
    "FleetStatus",
    "Alert",
    "MANIFEST_VERSION",
    "MANIFEST_OLDEST",
    "SYNC_MODES",
    "FREEZE_MODES",
    "RESTORE_MODES",
    "RESTORE_FORMATS",
    "KINDS",
    "WATCHER_CONNECTED",
    "WATCHER_DISCONNECTED",
    "WATCHER_MISSED",
]

SYNC_MODES = ("auto", "full", "incremental", "top", "none")
FREEZE_MODES = ("auto", "always", "never")
RESTORE_MODES = ("flatten", "chain", "instant")
RESTORE_FORMATS = ("qcow2", "raw")
# What a policy schedules for a domain.
KINDS = ("backup", "verify", "boot_test", "prune")
# What a watcher says of itself: Event.event beside QEMU's and libvirt's own words.
WATCHER_CONNECTED = "WATCHER_CONNECTED"
WATCHER_DISCONNECTED = "WATCHER_DISCONNECTED"
WATCHER_MISSED = "WATCHER_MISSED"
