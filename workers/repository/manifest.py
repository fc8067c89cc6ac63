"""Manifests: the truth about a point, beside its images.

A manifest carries a digest of itself (``seal``), so that one that was cut off or altered is told.

When a merge replaces an image, image and manifest cannot be replaced in one step. ``switch.json``
is written first and holds what the manifest will say of that disk; which of the two holds is told
by the image itself, since its header names another backing file. So the point can be read at any
moment, and after a kill at any moment.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from virtvault import schemas
from virtvault.errors import InvalidRequest, RepositoryUnusable
from virtvault.models import MANIFEST_VERSION, Point
from workers.repository import sidecar
from workers.repository.regular import json_object, open_regular

__all__ = ["FILE", "backing_of", "read", "switched", "text"]

FILE = "manifest.json"
SEAL = "seal"
# What of a disk a merge changes.
SWITCHED = ("parent", "sync", "length", "stored", "digests")
TRIES = 5


def text(point: Point) -> str:
    """A manifest file's content."""
    content = schemas.dump(replace(point, schema_version=MANIFEST_VERSION))
    content[SEAL] = _seal(content)
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def read(directory: Path) -> Point:
    """The manifest in a point's directory, with its images as they are now.

    :raises RepositoryUnusable: it cannot be read, is cut off, altered, or of a newer version.
    """
    for _ in range(TRIES):
        before = sidecar.read(directory, sidecar.SWITCH)
        point = switched(directory, _read(directory), before)
        # A merge that ends just now puts into the manifest what the switch says, and drops it.
        if sidecar.read(directory, sidecar.SWITCH) == before:
            return point
    raise RepositoryUnusable(
        f"The manifest {directory / FILE} changes all the time.", "Try again in a moment."
    )


def _read(directory: Path) -> Point:
    path = directory / FILE
    try:
        content = json_object(path)
        version = content.get("schema_version")
        if isinstance(version, int) and version > MANIFEST_VERSION:
            raise ValueError(
                f"it is of version {version}, and this virtvault reads up to {MANIFEST_VERSION}; "
                "upgrade virtvault."
            )
        seal = content.pop(SEAL, None)
        # Version 1 had none; one that has is not of version 1, whatever it says.
        if (version != 1 or seal is not None) and seal != _seal(content):
            raise ValueError("it was altered, or written only in part: its seal does not fit.")
        point = schemas.load(Point, content)
        if (point.uuid, point.id) != directory.parts[-2:]:
            raise ValueError(f"it is that of {point.uuid}/{point.id}.")
    except (OSError, ValueError, InvalidRequest) as error:
        raise RepositoryUnusable(
            f"The manifest {path} cannot be used: {error}",
            "Nothing builds on this point. Restore the file, or remove the point's directory.",
        ) from error
    return point


def switched(directory: Path, point: Point, switch: dict[str, Any] | None) -> Point:
    """The point with each disk as the image that is there has it.

    :param switch: what ``switch.json`` says, None where there is none.
    :raises RepositoryUnusable: that cannot be told.
    """
    if switch is None:
        return point
    try:
        disks, merged = [], set(point.merged)
        for disk in point.disks:
            to = switch["disks"].get(disk.target)
            if to is not None and backing_of(directory / disk.file) == to["backing_file"]:
                disk = replace(disk, **{key: to[key] for key in SWITCHED})
                merged |= set(switch["merged"])
            disks.append(disk)
        made = replace(point, disks=tuple(disks), merged=tuple(sorted(merged)))
        # As strict as what comes over the wire.
        return schemas.load(Point, schemas.dump(made))
    except (KeyError, TypeError, AttributeError, InvalidRequest) as error:
        raise RepositoryUnusable(
            f"{directory / sidecar.SWITCH} cannot be used: {error!r}",
            "Nothing builds on this point. Restore the file.",
        ) from error


def backing_of(image: Path) -> str:
    """The backing file that a qcow2 image's header names, empty for none.

    :raises RepositoryUnusable: it is not there, no qcow2 image, or has its data in another file.
    """
    try:
        with open_regular(image) as file:
            header = file.read(80)
            # qcow2's specification: magic, version, offset and length of the name; and of the
            # incompatible features the one that means an external data file.
            if len(header) < 72 or header[:4] != b"QFI\xfb":
                raise ValueError("it is no qcow2 image")
            if int.from_bytes(header[4:8]) >= 3 and int.from_bytes(header[72:80]) & 4:
                raise ValueError(f"it has its data in another file{_data_file(file)}")
            offset, length = int.from_bytes(header[8:16]), int.from_bytes(header[16:20])
            if not offset:
                return ""
            file.seek(offset)
            return file.read(min(length, 1023)).decode()
    except (OSError, ValueError) as error:
        raise RepositoryUnusable(
            f"{image} cannot be read: {error}.", "Use a point of another chain."
        ) from error


def _data_file(file: BinaryIO) -> str:
    """The data file's name from a qcow2's header extensions, for people; empty: not found."""
    file.seek(100)
    place = int.from_bytes(file.read(4))
    while 104 <= place < 65536:
        file.seek(place)
        kind, length = int.from_bytes(file.read(4)), int.from_bytes(file.read(4))
        if kind == 0x44415441:
            return f", {file.read(min(length, 1023)).decode(errors='replace')}"
        if not kind:
            break
        place += 8 + -(-length // 8) * 8
    return ""


def _seal(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return blake3(canonical.encode()).hexdigest()
