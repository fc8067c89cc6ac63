"""Manifests: the truth about a point, beside its images.

A manifest carries a digest of itself (``seal``), so that one that was cut off or altered is told.

When a merge replaces an image, image and manifest cannot be replaced in one step. ``switch.json``
is written first and holds what the manifest will say of that disk; which of the two holds is told
by the image itself, since its header names another backing file. So the point can be read at any
moment, and after a kill at any moment.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from virtvault import schemas
from virtvault.errors import InvalidRequest, RepositoryUnusable
from virtvault.models import MANIFEST_VERSION, Point, PointDisk
from workers.repository import sidecar

__all__ = ["FILE", "backing_of", "read", "switched", "text"]

FILE = "manifest.json"
SEAL = "seal"


def text(point: Point) -> str:
    """A manifest file's content."""
    content = schemas.dump(replace(point, schema_version=MANIFEST_VERSION))
    content[SEAL] = _seal(content)
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def read(directory: Path) -> Point:
    """The manifest in a point's directory, with its images as they are now.

    :raises RepositoryUnusable: it cannot be read, is cut off, altered, or of a newer version.
    """
    path = directory / FILE
    try:
        content = _parsed(path)
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
    return switched(directory, point)


def switched(directory: Path, point: Point) -> Point:
    """The point with each disk as the image that is there has it.

    :raises RepositoryUnusable: that cannot be told.
    """
    switch = sidecar.read(directory, sidecar.SWITCH)
    if switch is None:
        return point
    known = {field.name for field in fields(PointDisk)}
    disks, merged = [], set(point.merged)
    for disk in point.disks:
        to = switch["disks"].get(disk.target)
        if to is not None and backing_of(directory / disk.file) == to["backing_file"]:
            disk = replace(disk, **{k: v for k, v in to.items() if k in known})
            merged |= set(switch["merged"])
        disks.append(disk)
    return replace(point, disks=tuple(disks), merged=tuple(sorted(merged)))


def backing_of(image: Path) -> str:
    """The backing file that a qcow2 image's header names, empty for none.

    :raises RepositoryUnusable: it is not there, or no qcow2 image.
    """
    try:
        with image.open("rb") as file:
            header = file.read(20)
            # qcow2's specification: magic, version, offset and length of the name.
            if len(header) < 20 or header[:4] != b"QFI\xfb":
                raise ValueError("it is no qcow2 image")
            offset, length = int.from_bytes(header[8:16]), int.from_bytes(header[16:20])
            if not offset:
                return ""
            file.seek(offset)
            return file.read(min(length, 1023)).decode()
    except (OSError, ValueError) as error:
        raise RepositoryUnusable(
            f"{image} cannot be read: {error}.", "Use a point of another chain."
        ) from error


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"it was cut off, or is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object.")
    return content


def _seal(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return blake3(canonical.encode()).hexdigest()
