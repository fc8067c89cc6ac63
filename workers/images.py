"""Image files as a restore reads and leaves them."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from virtvault.errors import InvalidRequest, RepositoryUnusable
from virtvault.models import BackingImage

__all__ = ["is_whole_file", "punch_holes", "require_own_backing", "require_unchanged"]


def require_own_backing(chain: tuple[Path, ...], outside: str = "") -> None:
    """Refuse an image whose header points elsewhere: crafted, or moved by hand.

    :param outside: what the last image stands on where its manifest names something.
    :raises RepositoryUnusable: naming the image and what it points to.
    """
    for image, below in zip(chain, (*chain[1:], None), strict=True):
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
        expected = f"../{below.parent.name}/{below.name}" if below else outside or None
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
