"""Opening the disks of a point for reading, in a storage daemon.

Each image of a chain is opened by us and told what is below it: no header makes QEMU open a file.
The point's own image is locked against writers, which keeps prune away from the point while it is
read. Those below are not: a merge may write to one, into parts that the images above it hide.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virtvault.errors import MonitorError, PointBusy, UnknownDisk
from virtvault.models import Point, PointDisk
from virtvault.settings import Settings
from workers.images import require_own_backing, require_unchanged
from workers.monitor import Monitor
from workers.repository import DirectoryRepository

__all__ = ["Source", "choose", "open_sources"]

# A merge that ends just now replaces an image: the chain is then another, and is looked up again.
TRIES = 3
# Seconds; a merge holds an image it replaces for much less.
MOMENT = 0.2


@dataclass(frozen=True)
class Source:
    """One disk of a point that is open for reading: its node, and the images from its own down."""

    disk: PointDisk
    node: str
    images: tuple[Path, ...]


def choose(point: Point, targets: Sequence[str]) -> list[PointDisk]:
    """The disks meant by ``targets``, all where that is empty.

    :raises UnknownDisk: the point has no such disk.
    """
    known = {disk.target: disk for disk in point.disks}
    for wanted in targets:
        if wanted not in known:
            raise UnknownDisk(
                f"Point {point.id} has no disk {wanted!r}.", f"It has {', '.join(known)}."
            )
    return [disk for target, disk in known.items() if not targets or target in targets]


def open_sources(
    monitor: Monitor,
    settings: Settings,
    repository: DirectoryRepository,
    point: str,
    targets: Sequence[str] = (),
    *,
    force: bool = False,
) -> dict[str, Source]:
    """Open a point's disks read-only, by target; the nodes are ``src-TARGET``.

    :param force: whether a point that a verify found bad will do.
    :raises UnknownPoint: there is none (any more).
    :raises PointBusy: it is being pruned, or its images are in use by a writer.
    :raises PointBad: a verify found it bad.
    :raises RepositoryUnusable: its chain is broken, or points to what is not its own.
    """
    for attempt in range(TRIES):
        wanted = repository.find(point)
        found: dict[str, Source] = {}
        try:
            for disk in choose(wanted, targets):
                found[disk.target] = _open(monitor, settings, repository, wanted, disk, force)
            if _same(repository, wanted.id, found, force):
                return found
        except MonitorError as error:
            _close(monitor, found)
            if 'Failed to get "' in error.message:
                if attempt + 1 < TRIES:
                    time.sleep(MOMENT)
                    continue
                raise PointBusy(
                    f"An image of point {point} is being written to: it is being pruned.",
                    "Try again in a moment, or use another point.",
                ) from error
            if attempt + 1 == TRIES:
                raise
        else:
            _close(monitor, found)
    raise PointBusy(f"The chain of point {point} changes all the time.", "Try again in a moment.")


def _open(
    monitor: Monitor,
    settings: Settings,
    repository: DirectoryRepository,
    point: Point,
    disk: PointDisk,
    force: bool,
) -> Source:
    """The chain of one disk, bottom up."""
    images = tuple(repository.chain(point, disk.target, force=force))
    require_own_backing(images, outside=disk.backing[0].path if disk.backing else "")
    require_unchanged(point.id, disk.backing, settings.backing_roots)
    node = f"src-{disk.target}"
    below: str | None = None
    layers = [(str(image), "qcow2") for image in images]
    layers += [(image.path, image.format) for image in disk.backing]
    opened: list[str] = []
    try:
        for depth, (path, format_) in reversed(list(enumerate(layers))):
            name = f"{node}-{depth}" if depth else node
            monitor.execute(
                "blockdev-add",
                driver=format_,
                node_name=name,
                read_only=True,
                **({"force_share": True} if depth else {}),
                file={"driver": "file", "filename": path, "read-only": True},
                **({} if format_ == "raw" else {"backing": below}),
            )
            opened.append(name)
            below = name
    except BaseException:
        for name in reversed(opened):
            monitor.execute("blockdev-del", node_name=name)
        raise
    return Source(disk, node, images)


def _same(
    repository: DirectoryRepository, point: str, found: dict[str, Source], force: bool
) -> bool:
    """Whether what was opened is still what the point consists of.

    A prune first says so durably and then looks for locks; we lock first and look then. So either
    it sees our lock, or we see that it has begun (and :meth:`DirectoryRepository.chain` refuses).
    """
    now = repository.find(point)
    return all(
        tuple(repository.chain(now, target, force=force)) == source.images
        for target, source in found.items()
    )


def _close(monitor: Monitor, found: dict[str, Source]) -> None:
    for source in found.values():
        for depth in range(len(source.images) + len(source.disk.backing)):
            monitor.execute(
                "blockdev-del", node_name=f"{source.node}-{depth}" if depth else source.node
            )
