"""Manifests: the truth about a point, beside its images."""

from __future__ import annotations

import json
from pathlib import Path

from virtvault import schemas
from virtvault.errors import InvalidRequest, RepositoryUnusable
from virtvault.models import Point

__all__ = ["FILE", "read", "text"]

FILE = "manifest.json"


def text(point: Point) -> str:
    """A manifest file's content."""
    return json.dumps(schemas.dump(point), indent=1, sort_keys=True) + "\n"


def read(directory: Path) -> Point:
    """The manifest in a point's directory.

    :raises RepositoryUnusable: it cannot be read, is cut off, altered, or of a newer version.
    """
    path = directory / FILE
    try:
        return schemas.load(Point, json.loads(path.read_text()))
    except (OSError, ValueError, InvalidRequest) as error:
        raise RepositoryUnusable(
            f"The manifest {path} cannot be used: {error}",
            "Nothing builds on this point. Restore the file, or remove the point's directory.",
        ) from error
