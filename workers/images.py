"""Image files as a restore reads and leaves them."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from virtvault.errors import (
    DestinationExists,
    DomainBusy,
    InvalidRequest,
    NoRoom,
    RepositoryUnusable,
)
from virtvault.models import BackingImage

__all__ = [
    "absent",
    "claim",
    "is_whole_file",
    "lock",
    "publish",
    "punch_holes",
    "require_own_backing",
    "require_points_to",
    "require_room",
    "require_unchanged",
    "sync",
]


def require_own_backing(chain: tuple[Path, ...], outside: str = "") -> None:
    """Refuse an image whose header points elsewhere: crafted, or moved by hand.

    :param outside: what the last image stands on where its manifest names something.
    :raises RepositoryUnusable: naming the image and what it points to.
    """
    for image, below in zip(chain, (*chain[1:], None), strict=True):
        expected = f"../{below.parent.name}/{below.name}" if below else outside or None
        require_points_to(image, expected)


def require_points_to(image: Path, expected: str | None) -> None:
    """Refuse an image whose header names another backing file than ``expected``, or a data file.

    :raises RepositoryUnusable: naming the image and what it points to.
    """
    done = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", "-f", "qcow2", str(image)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RepositoryUnusable(
            f"{image} cannot be read: {done.stderr.strip()}.",
            "Use a point of another chain.",
        )
    info = json.loads(done.stdout)
    found = info.get("backing-filename")
    data_file = info.get("format-specific", {}).get("data", {}).get("data-file")
    if found != expected or data_file:
        raise RepositoryUnusable(
            f"{image} points to {data_file or found}, its manifest to {expected}.",
            "The image was altered; use a point of another chain.",
        )


def is_whole_file(path: str) -> bool:
    """Whether an image is one regular file, which tells when it was written to."""
    return Path(path).is_file() and not _data_file(path)


def _data_file(path: str) -> str:
    """The other file a qcow2 image has its data in, or empty. Nothing but its header is read."""
    with open(path, "rb") as file:
        # Magic, and bit 2 of the incompatible features: qcow2's specification.
        header = file.read(80)
    if header[:4] != b"QFI\xfb" or int.from_bytes(header[4:8]) < 3:
        return ""
    return "another file" if int.from_bytes(header[72:80]) & 4 else ""


def require_unchanged(point: str, backing: tuple[BackingImage, ...], roots: Sequence[str]) -> None:
    """See that the images outside the repository that a ``top`` needs are what they were.

    :param roots: the directories they may lie in, from the worker's own configuration.
    :raises InvalidRequest: one lies elsewhere.
    :raises RepositoryUnusable: one is gone or was written to.
    """
    for image in backing:
        path = Path(image.path).resolve()
        if not any(path.is_relative_to(Path(root).resolve()) for root in roots):
            raise InvalidRequest(
                f"Point {point} (sync top) needs {path}, which is outside the backing_roots of "
                "this worker.",
                f"Where that image is to be trusted, add {path.parent} to backing_roots.",
            )
        try:
            entry = path.stat()
        except OSError as error:
            raise RepositoryUnusable(
                f"Point {point} (sync top) needs {path}: {error.strerror}.",
                "Put that image back, with its time of last change, or use another point.",
            ) from error
        if image.format == "qcow2" and _data_file(str(path)):
            raise RepositoryUnusable(
                f"Point {point} (sync top) needs {path}, which has its data in another file.",
                "Use another point.",
            )
        if (entry.st_size, entry.st_mtime_ns) != (image.length, image.modified):
            raise RepositoryUnusable(
                f"Point {point} (sync top) needs {path}, which was written to since: together they "
                "are not the disk of that instant any more.",
                "Put back the image as it was, with its time of last change, or use another point.",
            )


def punch_holes(descriptor: int) -> None:
    """Give back the room of what reads as zeroes: the job allocates it without writing to it.

    Only ranges the file system itself calls holes are punched, so no byte changes. One that
    cannot punch keeps the file at its full size.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    end = os.fstat(descriptor).st_size
    data = 0
    while data < end and (hole := os.lseek(descriptor, data, os.SEEK_HOLE)) < end:
        try:
            data = os.lseek(descriptor, hole, os.SEEK_DATA)
        except OSError:  # ENXIO: no data from here to the end
            data = end
        # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, linux/falloc.h
        if libc.fallocate(
            descriptor, 0x01 | 0x02, ctypes.c_int64(hole), ctypes.c_int64(data - hole)
        ):
            return


def sync(path: Path, *, holes: bool = False) -> None:
    """Bring a file's content to the disk; with ``holes`` give back the room of its zeroes first."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        if holes:
            punch_holes(descriptor)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def claim(path: Path) -> None:
    """Make an empty file, for its owner alone, where there is nothing: not even a dangling link.

    :raises DestinationExists: there is something.
    :raises RepositoryUnusable: it cannot be made.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    except FileExistsError as error:
        raise DestinationExists(
            f"Already there: {path}.", "Remove it, or restore into another directory."
        ) from error
    except OSError as error:
        raise RepositoryUnusable(
            f"Cannot make the image {path}: {error.strerror}.",
            "Make room there or mend its permissions.",
        ) from error


def publish(partial: Path, final: Path) -> None:
    """Give the file its name, never over another that came meanwhile.

    :raises DestinationExists: one did.
    """
    try:
        os.link(partial, final)
    except FileExistsError as error:
        if not os.path.samestat(partial.lstat(), final.lstat()):
            raise DestinationExists(
                f"{final} appeared while it was being restored.",
                "Remove it, or restore into another directory.",
            ) from error
    except OSError:
        # A file system without hard links: looked at a moment ago.
        partial.rename(final)
        return
    partial.unlink()


def lock(path: Path, *, sharing: bool = False) -> int:
    """Take an image as QEMU would for itself alone; gives the descriptor that holds it.

    :param sharing: whether readers that do not mind a writer may have it open (``force-share``).
    :raises DomainBusy: a QEMU has it open.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        # The bytes QEMU locks for what it does (100 on) and for what it keeps others from (200 on);
        # the second of each is for writing: block/file-posix.c, include/block/block-common.h.
        for start, length in ((101, 1), (201, 1)) if sharing else ((100, 200),):
            ours = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, ours)
    except OSError as error:
        os.close(descriptor)
        raise DomainBusy(
            f"{path} is in use: a domain that runs, or another program, has it open.",
            "End it, or restore elsewhere.",
        ) from error
    return descriptor


def require_room(needed: Iterable[tuple[Path, int]]) -> None:
    """See that each file system has the room for what will be written to it.

    :param needed: places, that may not be there yet, and bytes.
    :raises NoRoom: one has not.
    """
    places: dict[int, tuple[Path, int]] = {}
    for path, count in needed:
        existing = next(p for p in (path, *path.parents) if p.exists())
        first, sum_ = places.get(existing.stat().st_dev, (existing, 0))
        places[existing.stat().st_dev] = (first, sum_ + count)
    for path, count in places.values():
        stat = os.statvfs(path)
        free = stat.f_bavail * stat.f_frsize
        if free < count:
            raise NoRoom(
                f"{path} has {free} bytes free and the restore needs up to {count}.",
                "Make room, or restore elsewhere.",
            )


def absent(image: Path, size: int = sys.maxsize) -> int:
    """The bytes of the disk that a qcow2 image, which may be in use, has nothing of itself.

    :param size: only those below; an image that has grown has nothing above.
    :raises RepositoryUnusable: it cannot be read.
    """
    alone = {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": str(image)}}
    done = subprocess.run(
        ["qemu-img", "map", "-U", "--output=json", f"json:{json.dumps(alone)}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RepositoryUnusable(
            f"{image} cannot be read: {done.stderr.strip()}.", "See whether the image is sound."
        )
    missing = [p for p in json.loads(done.stdout) if not p.get("present", True)]
    return sum(max(0, min(p["start"] + p["length"], size) - p["start"]) for p in missing)
