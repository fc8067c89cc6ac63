"""virtvault: live full and incremental backup and restore of QEMU/KVM disks as Celery tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtvault.errors import VirtvaultError
from virtvault.models import BackupRequest, BackupResult, Point, RestoreRequest, RestoreResult

if TYPE_CHECKING:
    from virtvault.client import Client, Handle

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


def __getattr__(name: str) -> Any:
    """Import the client at first use: it brings Celery, which `virtvault --help` need not."""
    if name in ("Client", "Handle"):
        from virtvault import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
