"""Reading files of a repository that others may have written to.

A symbolic link, a pipe or a device in the place of a file is refused: nothing outside of the
repository is opened through it.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["is_directory", "json_object", "open_regular"]

# No file of ours is larger but images and lists of digests: 64 MiB of JSON would be no manifest.
MOST = 64 * 2**20


def open_regular(path: Path) -> BinaryIO:
    """Open for reading.

    :raises OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    :raises OSError: it cannot be read.
    :raises ValueError: it holds none.
    """
    with open_regular(path) as file:
        data = file.read(MOST)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it was cut off, or is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object.")
    return found


def is_directory(path: Path) -> bool:
    """Whether it is a directory itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()
