"""A domain's firmware variables (NVRAM): kept beside its point's XML, and given to a new domain."""

from __future__ import annotations

import os
from pathlib import Path

from workers.domain_xml import nvram_of
from workers.journal import sync_directory

__all__ = ["FILE", "keep", "put"]

FILE = "nvram.fd"
# OVMF's are half a MiB, ARM's 64 MiB. What is larger is no such file.
LARGEST = 128 * 2**20


def keep(xml: str, directory: Path) -> list[str]:
    """Copy the file into a point's directory, durably; gives notes on why it could not be.

    :param xml: the domain's.
    :raises OSError: the copy cannot be written.
    """
    path = nvram_of(xml)
    if not path:
        return [] if "<nvram" not in xml else ["its NVRAM is not in a file and is not in the point"]
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        return [f"its NVRAM {path} is not in the point: {error.strerror}"]
    if len(content) > LARGEST:
        return [f"its NVRAM {path} is not in the point: larger than {LARGEST} bytes"]
    put(content, directory / FILE)
    return []


def put(content: bytes, path: Path) -> None:
    """Write a file of such variables durably, for its owner alone."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)
