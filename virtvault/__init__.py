"""virtvault: live full and incremental backup and restore of QEMU/KVM disks as Celery tasks."""

from __future__ import annotations

from virtvault.client import Client, Handle
from virtvault.errors import VirtvaultError
from virtvault.models import BackupRequest, BackupResult, Point, RestoreRequest, RestoreResult

__all__ = [
    "Client",
    "Handle",
    "BackupRequest",
    "RestoreRequest",
    "BackupResult",
    "RestoreResult",
    "Point",
    "VirtvaultError",
    "__version__",
]

__version__ = "0.1.0"
