"""Image files as a restore reads and leaves them."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from pathlib import Path

from virtvault.errors import RepositoryUnusable

__all__ = ["punch_holes", "require_own_backing"]


def require_own_backing(chain: tuple[Path, ...]) -> None:
    """Refuse an image whose header points elsewhere: crafted, or moved by hand.

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
        expected = f"../{below.parent.name}/{below.name}" if below else None
        found = info.get("backing-filename")
        data_file = info.get("format-specific", {}).get("data", {}).get("data-file")
        if found != expected or data_file:
            raise RepositoryUnusable(
                f"{image} points to {data_file or found}, its manifest to {expected}.",
                "The image was altered; use a point of another chain.",
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
