"""Proving one image of the repository: what it stands on, its structure, what it holds."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from virtvault.errors import InvalidRequest, RepositoryUnusable, UnknownPoint
from virtvault.models import Point, PointDisk
from virtvault.settings import Settings
from workers import digests
from workers.images import require_points_to, require_unchanged
from workers.nbd_reader import layers
from workers.repository import DirectoryRepository, open_repository, sidecar

__all__ = ["BAD", "GOOD", "UNPROVEN", "Finding", "examine", "throttled"]

GOOD, BAD, UNPROVEN = "good", "bad", "unproven"
# A prune that ends just now replaces image and manifest: what was found is then of neither.
TRIES = 3
# qemu-img check: leaked clusters waste room and harm nothing.
LEAKS = 3


@dataclass(frozen=True)
class Finding:
    """What was found of one image; ``compared`` counts the bytes read back and hashed."""

    verdict: str
    detail: str = ""
    compared: int = 0


def examine(
    settings: Settings,
    repository: DirectoryRepository,
    point: Point,
    disk: PointDisk,
    sample: Callable[[int, int], None],
) -> Finding:
    """Examine the image that a point has of a disk; nothing below it is opened.

    :param sample: called with the bytes read and to read, and while waiting; may raise to stop.
    :raises RepositoryUnusable: the repository itself is away: then nothing is known.
    """
    condemned: PointDisk | None = None
    for _ in range(TRIES):
        found = _examine(settings, repository.directory(point.uuid, point.id), point, disk, sample)
        # Damage is said of what is certainly the image that the manifest means, and only where it
        # was found twice: what hinders one reading need not be in the image.
        if found.verdict != BAD or disk == condemned:
            return found
        condemned = disk
        open_repository(settings, repository.name)
        try:
            point = repository.find(point.id)
        except UnknownPoint:
            return Finding(UNPROVEN, "it was pruned meanwhile")
        disk = next(d for d in point.disks if d.target == disk.target)
    return Finding(UNPROVEN, "it changes all the time: it is being merged; verify it again")


def _examine(
    settings: Settings,
    directory: Path,
    point: Point,
    disk: PointDisk,
    sample: Callable[[int, int], None],
) -> Finding:
    if (directory / sidecar.PRUNING).exists():
        return Finding(UNPROVEN, f"point {point.id} is being pruned")
    image = directory / disk.file
    try:
        length = image.stat().st_size
    except FileNotFoundError:
        return Finding(BAD, f"{image} is not there")
    except OSError as error:
        return Finding(BAD, f"{image} cannot be read: {error.strerror}")
    if length != disk.length:
        return Finding(BAD, f"{image} is {length} bytes long and not {disk.length}")
    try:
        require_points_to(image, _below(disk))
        _require_structure(image, lambda: sample(0, 0))
    except RepositoryUnusable as error:
        return Finding(BAD, error.message.rstrip("."))
    outside = _outside(settings, point, disk)
    if outside.verdict == BAD:
        return outside
    if not disk.digests:
        return Finding(
            UNPROVEN,
            "its structure is whole; what it holds cannot be told, since the virtvault that made "
            "it kept no digests",
        )
    try:
        digests.load(directory, disk.target, disk.digests)
    except RepositoryUnusable as error:
        # The list is lost, not the image.
        return Finding(UNPROVEN, error.message.rstrip("."))
    compared = 0

    def count(done: int, total: int) -> None:
        nonlocal compared
        compared = done
        sample(done, total)

    if damage := digests.check(directory, disk, settings.runtime_dir, count):
        return Finding(BAD, damage.detail.rstrip("."), compared)
    return Finding(outside.verdict, outside.detail, compared)


def _below(disk: PointDisk) -> str | None:
    """The backing file that the image's header must name."""
    if disk.backing:
        return disk.backing[0].path
    return f"../{disk.parent}/{disk.file}" if disk.parent else None


def _outside(settings: Settings, point: Point, disk: PointDisk) -> Finding:
    """What is so of the images outside the repository that a ``top`` stands on."""
    try:
        require_unchanged(point.id, disk.backing, settings.backing_roots)
    except InvalidRequest as error:
        return Finding(UNPROVEN, error.message.rstrip("."))
    except RepositoryUnusable as error:
        # On another host a path may be another file, or none.
        verdict = BAD if point.host == settings.host else UNPROVEN
        return Finding(verdict, error.message.rstrip("."))
    return Finding(GOOD)


def _require_structure(image: Path, waiting: Callable[[], None]) -> None:
    """See that the image's own tables are consistent, opening no other file.

    :raises RepositoryUnusable: they are not, or cannot be read.
    """
    node = {key: value for key, value in layers([image]).items() if key != "force-share"}
    process = subprocess.Popen(
        ["qemu-img", "check", "-U", "--output=json", f"json:{json.dumps(node)}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while True:
            try:
                output, said = process.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                waiting()
    finally:
        process.kill()
        process.wait()
    if process.returncode in (0, LEAKS):
        return
    try:
        counts = json.loads(output)
    except ValueError:
        counts = {}
    corrupt, unread = counts.get("corruptions", 0), counts.get("check-errors", 0)
    if not corrupt and not unread:
        raise RepositoryUnusable(f"{image} cannot be read: {said.strip()}.", "Restore the file.")
    raise RepositoryUnusable(
        f"{image} is damaged: qemu-img check finds {corrupt} corruptions and {unread} errors of "
        "reading.",
        "Restore the file, or use a point of another chain.",
    )


def throttled(
    sample: Callable[[int, int], None], speed: int, waiting: Callable[[], None]
) -> Callable[[int, int], None]:
    """``sample``, held up so that no more than ``speed`` bytes per second go by; 0: no limit."""
    if not speed:
        return sample
    began: float | None = None

    def held(done: int, total: int) -> None:
        nonlocal began
        sample(done, total)
        began = time.monotonic() if began is None or not done else began
        while (early := began + done / speed - time.monotonic()) > 0:
            waiting()
            time.sleep(min(early, 0.1))

    return held
