"""What is said of a point after its manifest was written: small files beside it.

``verify.json``: the last verdict. ``protected.json``: why it is kept whatever the rules say.
``pruning.json``: it is being removed, and its images may be changing. ``switch.json``: one of its
images is being replaced by a merged one (see :mod:`workers.repository.manifest`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from virtvault import schemas
from virtvault.errors import InvalidRequest, RepositoryUnusable
from virtvault.models import Verdict
from workers.journal import durable_write, sync_directory
from workers.repository.regular import json_object

__all__ = [
    "PROTECTED",
    "PRUNING",
    "SCREENSHOT",
    "SWITCH",
    "VERDICT",
    "drop",
    "protection",
    "read",
    "verdict",
    "write",
    "write_verdict",
]

VERDICT = "verify.json"
PROTECTED = "protected.json"
PRUNING = "pruning.json"
SWITCH = "switch.json"
SCREENSHOT = "boot.png"


def read(directory: Path, name: str) -> dict[str, Any] | None:
    """One of the files, None where there is none.

    :raises RepositoryUnusable: it is there and cannot be read: what it says is not known.
    """
    path = directory / name
    try:
        return json_object(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def write(directory: Path, name: str, content: dict[str, Any]) -> None:
    """Make one of the files durable.

    :raises RepositoryUnusable: it cannot be written.
    """
    try:
        durable_write(directory / name, json.dumps(content, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise RepositoryUnusable(
            f"{directory / name} cannot be written: {error.strerror}.",
            "Mount the repository for writing, or make room.",
        ) from error


def drop(directory: Path, name: str) -> None:
    """Remove one of the files, durably."""
    try:
        (directory / name).unlink(missing_ok=True)
        sync_directory(directory)
    except OSError as error:
        raise RepositoryUnusable(
            f"{directory / name} cannot be removed: {error.strerror}.",
            "Mount the repository for writing.",
        ) from error


def verdict(directory: Path) -> Verdict | None:
    """What the last verify found, None where there was none.

    :raises RepositoryUnusable: it cannot be told.
    """
    found = read(directory, VERDICT)
    try:
        return None if found is None else schemas.load(Verdict, found)
    except InvalidRequest as error:
        raise _unreadable(directory / VERDICT, error) from error


def write_verdict(directory: Path, found: Verdict) -> None:
    """Make a verdict durable."""
    write(directory, VERDICT, schemas.dump(found))


def protection(directory: Path) -> str:
    """Why the point is protected, empty where it is not; unreadable counts as protected."""
    try:
        found = read(directory, PROTECTED)
    except RepositoryUnusable as error:
        return f"its protection cannot be read: {error.message}"
    return "" if found is None else str(found.get("reason") or "protected")


def _unreadable(path: Path, error: object) -> RepositoryUnusable:
    return RepositoryUnusable(
        f"{path} cannot be used: {error}",
        "Verify the point anew (`virtvault verify`) where it is a verdict; else restore the file.",
    )
