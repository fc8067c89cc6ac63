"""Where a restore may write: directories, block devices, pools of RBD images."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
from pathlib import Path

from virtvault.errors import (
    DestinationExists,
    DomainBusy,
    InvalidRequest,
    NoRoom,
)
from virtvault.settings import Settings
from workers.images import lock
from workers.restore.rbd import Image

__all__ = [
    "claim_device",
    "device_of",
    "directory_of",
    "image_of",
    "require_device",
    "require_reach",
]

MIB = 2**20
# Nothing that QEMU or Ceph takes for more than a name.
NAME = "([A-Za-z0-9_][A-Za-z0-9_.-]{0,95})"
IMAGE = re.compile(f"rbd:{NAME}/{NAME}", re.ASCII)


def directory_of(settings: Settings, to: str) -> Path:
    """The directory meant, inside a restore root.

    :raises InvalidRequest: it is outside all of them.
    """
    roots = [Path(root).resolve() for root in settings.restore_roots]
    if not roots:
        raise InvalidRequest("This worker has no restore_roots.", "Set them in its configuration.")
    path = (roots[0] / to).resolve()
    if not any(path.is_relative_to(root) for root in roots):
        raise InvalidRequest(
            f"{path} is outside the restore roots of {settings.host}.",
            f"Restore below {', '.join(str(root) for root in roots)}.",
        )
    return path


def require_reach(directory: Path, uid: int) -> None:
    """See that the user QEMU runs as can get to files in a directory that is, or will be, there.

    :raises InvalidRequest: a directory on the way shuts it out.
    """
    if uid == 0:
        return
    for place in (directory, *directory.parents):
        if not place.exists():
            continue
        entry = place.stat()
        if not entry.st_mode & (0o100 if entry.st_uid == uid else 0o001):
            raise InvalidRequest(
                f"QEMU's user (uid {uid}) cannot enter {place} (mode {entry.st_mode & 0o7777:o}), "
                "so no domain could use images below it.",
                f"`chmod o+x {place}`, or restore elsewhere.",
            )


def device_of(settings: Settings, target: str, wanted: str) -> Path:
    """The block device meant for a disk.

    :raises InvalidRequest: it is outside the configured ones, or no block device.
    """
    path = Path(os.path.normpath(wanted))
    allowed = [d for d in settings.restore_devices if not d.startswith("rbd:")]
    if not any(path.is_relative_to(device) for device in allowed):
        raise InvalidRequest(
            f"devices: {target}: {path} is outside the restore_devices of {settings.host}.",
            f"It has {', '.join(allowed) or 'none'}; they are set in the worker's configuration.",
        )
    try:
        is_block = stat.S_ISBLK(path.stat().st_mode)
    except OSError as error:
        raise InvalidRequest(
            f"devices: {target}: {path}: {error.strerror}.", "Make the device first."
        ) from error
    if not is_block:
        raise InvalidRequest(
            f"devices: {target}: {path} is no block device.", "For files use a directory (--to)."
        )
    return path


def image_of(settings: Settings, target: str, wanted: str, tag: str) -> Image:
    """The RBD image meant for a disk.

    :param tag: of the run that makes it.
    :raises InvalidRequest: it is in none of the configured pools, or has no plain name.
    """
    if (found := IMAGE.fullmatch(wanted)) is None:
        raise InvalidRequest(
            f"devices: {target}: {wanted!r} is not rbd:POOL/IMAGE in letters, digits, '_', '.' and "
            "'-', at most 96 each.",
            "Name no options and no snapshot: the cluster is the worker's own "
            "(/etc/ceph/ceph.conf, or CEPH_CONF in its environment).",
        )
    pool, name = found.groups()
    allowed = [d for d in settings.restore_devices if d.startswith("rbd:")]
    if f"rbd:{pool}" not in allowed:
        raise InvalidRequest(
            f"devices: {target}: pool {pool} is not among the restore_devices of {settings.host}.",
            f"It has {', '.join(allowed) or 'no pools'}; they are set in the worker's "
            "configuration.",
        )
    return Image(pool, name, tag)


def claim_device(path: Path) -> int:
    """Hold a block device against mounts and the like; gives the descriptor that does.

    :raises DomainBusy: it is mounted, or in use by the kernel.
    """
    try:
        # On a block device that is an exclusive claim: what is mounted, or part of something, is
        # refused, and nobody can mount it for as long as we hold it.
        return os.open(path, os.O_RDWR | os.O_EXCL)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise InvalidRequest(
                f"{path} cannot be opened: {error.strerror}.", "Mend that, or choose another."
            ) from error
        raise DomainBusy(
            f"{path} is in use: mounted, or part of a volume group, a RAID or a mapping.",
            "Take it out of use, or choose another.",
        ) from error


def require_device(path: Path, size: int, *, force: bool) -> int:
    """Claim a block device that is to be overwritten; gives the descriptor that holds it.

    :param size: of the disk, in bytes.
    :param force: whether what is on it may go.
    :raises NoRoom: it is smaller than the disk.
    :raises DomainBusy: it is mounted, or in use by the kernel or a QEMU.
    :raises DestinationExists: something is on it.
    """
    descriptor = claim_device(path)
    try:
        there = os.lseek(descriptor, 0, os.SEEK_END)
        if there < size:
            raise NoRoom(
                f"{path} has {there} bytes and the disk {size}.", "Enlarge it, or choose another."
            )
        os.close(lock(path))
        if not force and (found := _content(path, descriptor)):
            raise DestinationExists(
                f"{path} is not empty: {found}.",
                "Choose another, clear it (`wipefs -a`, `blkdiscard`), or overwrite it with "
                "--force.",
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _content(path: Path, descriptor: int) -> str:
    """What is on a device, empty where nothing is known to be."""
    done = subprocess.run(
        ["blkid", "--probe", "--output", "export", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        found = [line for line in done.stdout.split() if line.startswith(("TYPE=", "PTTYPE="))]
        return f"it has {', '.join(found) or 'a signature'}"
    if done.returncode != 2:  # several signatures that contradict each other
        return "blkid cannot tell what is on it"
    return "its first MiB has data" if any(os.pread(descriptor, MIB, 0)) else ""
