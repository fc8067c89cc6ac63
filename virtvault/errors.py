"""Every error that virtvault shows to anyone.

    VirtvaultError                 exit  retryable
    ├── BadInput                   2     no    the request cannot be carried out as it stands
    │   ├── InvalidRequest         2     no    a field is wrong: names the field
    │   ├── InvalidSettings        2     no    the configuration is wrong: names the key
    │   ├── UnknownDomain          2     no
    │   ├── UnknownDisk            2     no
    │   ├── UnknownRepository      2     no
    │   ├── UnknownPoint           2     no
    │   ├── UnknownTask            2     no
    │   ├── NothingToBackUp        2     no    no disk of the domain can be backed up
    │   ├── UnknownBitmap          2     no
    │   ├── ProtectedBitmap        2     no    it is virtvault's or libvirt's own
    │   ├── DestinationExists      2     no
    │   ├── NoRoom                 2     no    less is free than is needed: both numbers
    │   ├── PointBad               2     no    a verify found it damaged; --force restores it
    │   ├── PointBusy              2     yes   it is being pruned, or read by somebody: named
    │   └── DomainBusy             2     yes   another run, or libvirt, or a tool is at work on it
    ├── WorkFailed                 1     yes   the backup or restore failed; nothing was published
    │   ├── GuestAgentFailed       1     yes   freeze was demanded and did not happen
    │   ├── JobFailed              1     yes   QEMU's block job ended with an error
    │   ├── DomainStopped          1     yes   the domain ended while its backup ran
    │   ├── DomainStarted          1     yes   the domain was started while its backup ran
    │   ├── JobVanished            1     yes   how the job ended is unknown, so it did not succeed
    │   ├── RepositoryUnusable     1     yes   full, not writable, not mounted, damaged
    │   ├── NotSupported           1     no    this QEMU or disk cannot do it
    │   └── MonitorError           1     yes   QEMU refused a command
    ├── NotReachable               3     yes   Redis, libvirt or a worker does not answer
    └── Cancelled                  4     no

Every error carries what happened (to which domain, disk or point) and what to do next.
They cross Celery as ``(exc_type, exc_module, args)``, so ``args`` is always ``(message, mend)``.
"""

from __future__ import annotations

__all__ = [
    "BadInput",
    "Cancelled",
    "DestinationExists",
    "DomainBusy",
    "DomainStarted",
    "DomainStopped",
    "GuestAgentFailed",
    "InvalidRequest",
    "InvalidSettings",
    "JobFailed",
    "JobVanished",
    "MonitorError",
    "NotReachable",
    "NotSupported",
    "NoRoom",
    "NothingToBackUp",
    "PointBad",
    "PointBusy",
    "ProtectedBitmap",
    "RepositoryUnusable",
    "UnknownBitmap",
    "UnknownDisk",
    "UnknownDomain",
    "UnknownPoint",
    "UnknownRepository",
    "UnknownTask",
    "VirtvaultError",
    "WorkFailed",
]


class VirtvaultError(Exception):
    """Something went wrong; ``message`` says what, ``mend`` what to do next."""

    exit_code = 1
    retryable = False

    def __init__(self, message: str, mend: str = "") -> None:
        super().__init__(message, mend)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message} {self.mend}".strip()


class BadInput(VirtvaultError):
    """The request cannot be carried out as it stands; nothing was touched."""

    exit_code = 2


class InvalidRequest(BadInput):
    """A field of the request is wrong; the message names it."""


class InvalidSettings(BadInput):
    """A setting is wrong; the message names it and where it came from."""


class UnknownDomain(BadInput):
    """No hypervisor that answers has this domain."""


class UnknownDisk(BadInput):
    """The domain has no such disk, or it is one that cannot be backed up."""


class UnknownRepository(BadInput):
    """The worker's configuration names no such repository."""


class UnknownPoint(BadInput):
    """No repository of this worker holds such a point."""


class UnknownTask(BadInput):
    """No task of ours with this id is known."""


class NothingToBackUp(BadInput):
    """The domain has no disk that can be backed up."""


class UnknownBitmap(BadInput):
    """The disk has no such dirty bitmap; the mend names those it has."""


class ProtectedBitmap(BadInput):
    """The bitmap, or its name, is virtvault's or libvirt's own: changing it would break them."""


class DestinationExists(BadInput):
    """A restore would overwrite something."""


class NoRoom(BadInput):
    """Less is free at the destination than is needed; the message has both numbers."""


class PointBad(BadInput):
    """A verify found the point, or one it stands on, damaged."""


class PointBusy(BadInput):
    """The point is being pruned, or read or written by somebody, who is named."""

    retryable = True


class DomainBusy(BadInput):
    """Somebody is at work on this domain: another run of ours, libvirt, a tool. It is named."""

    retryable = True


class WorkFailed(VirtvaultError):
    """The work failed; no point was published and the next incremental loses nothing."""

    retryable = True


class GuestAgentFailed(WorkFailed):
    """A file system freeze was demanded and the guest agent did not do it."""


class JobFailed(WorkFailed):
    """QEMU's block job ended with an error, which the message quotes."""


class DomainStopped(WorkFailed):
    """The domain is not running (any more)."""


class DomainStarted(WorkFailed):
    """The domain was started, or its images were written to, while its backup read them."""


class JobVanished(WorkFailed):
    """The block job is gone and nobody saw how it ended: unknown is never success."""


class RepositoryUnusable(WorkFailed):
    """The repository is full, not writable, not there, or damaged."""


class NotSupported(WorkFailed):
    """This QEMU, libvirt or disk cannot do what was asked."""

    retryable = False


class MonitorError(WorkFailed):
    """QEMU refused a monitor command; the message quotes it."""


class NotReachable(VirtvaultError):
    """Redis, libvirt, QEMU or a worker does not answer in time."""

    exit_code = 3
    retryable = True


class Cancelled(VirtvaultError):
    """Somebody cancelled the task; nothing was published."""

    exit_code = 4
