"""Removing our bitmaps and clearing a user's, in QEMU or in the images of a shut-off domain."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from virtvault.errors import MonitorError, VirtvaultError
from workers import disks as disk_view
from workers import offline
from workers.disks import Disk
from workers.engine import Engine
from workers.hypervisor import LibvirtMonitor
from workers.journal import Run

__all__ = ["clear_user_bitmap", "remove_bitmap", "remove_bitmaps"]

TRIES = 5


def remove_bitmaps(engine: Engine, uuid: str, which: Callable[[Disk, str], bool]) -> None:
    """Remove bitmaps from a domain's disks, in QEMU or, where it is shut off, in the images.

    :raises UnknownDomain: it is not defined any more.
    :raises VirtvaultError: not all of them could be removed.
    """
    engine.hypervisor.domain(uuid)
    for attempt in range(TRIES):
        try:
            if engine.hypervisor.is_active(uuid):
                _remove_in_qemu(engine, uuid, which)
            else:
                _remove_in_images(engine, uuid, which)
            return
        except VirtvaultError:
            # Started or shut off in between: then the other way is the right one.
            if attempt + 1 == TRIES:
                raise
            time.sleep(0.3)


def _remove_in_qemu(engine: Engine, uuid: str, which: Callable[[Disk, str], bool]) -> None:
    monitor = engine.hypervisor.monitor(engine.hypervisor.domain(uuid))
    try:
        for disk in disk_view.discover(monitor, monitor.xml()):
            for name in _names(disk, which):
                remove_bitmap(monitor, disk, name)
    finally:
        monitor.close()


def _remove_in_images(engine: Engine, uuid: str, which: Callable[[Disk, str], bool]) -> None:
    for disk in offline.discover(engine.hypervisor.inactive_xml(uuid)):
        for name in _names(disk, which):
            # As in a running QEMU: those of images further down do no harm.
            if name in disk.layers[0].bitmaps:
                offline.change_bitmaps(disk.source, "--remove", name)


def clear_user_bitmap(engine: Engine, run: Run, name: str, covered: set[str]) -> None:
    """Make a user's bitmap count from the point, now that the point is durable.

    What was written since the instant stands in a bitmap of the run's own: while that is there,
    this can be done again.
    """
    if not engine.hypervisor.is_active(run.uuid):
        for disk in offline.discover(engine.hypervisor.inactive_xml(run.uuid)):
            since = run.bitmap(disk.target).since
            there = disk.layers[0].bitmaps if disk.layers else {}
            mark = there.get(name)
            below = any(since in layer.bitmaps for layer in disk.layers[1:])
            # Where it cannot all be merged the marks stay: too many of them do no harm.
            if disk.target in covered and since in there and mark and not (mark.trouble or below):
                offline.change_bitmaps(disk.source, "--clear", "--merge", since, name)
        return
    monitor = engine.hypervisor.monitor(engine.hypervisor.domain(run.uuid))
    try:
        for disk in disk_view.discover(monitor, monitor.xml()):
            since = run.bitmap(disk.target).since
            # An overlay put on top meanwhile has both bitmaps too, and the images below theirs.
            nodes = [layer.node for layer in disk.layers if since in layer.bitmaps]
            mark = disk.layers[0].bitmaps.get(name) if disk.layers else None
            # One that cannot be cleared any more marks too much, which does no harm.
            across = monitor.capabilities.merge == "any node"
            whole = across or nodes == [disk.node]
            if disk.target in covered and nodes and whole and mark and not mark.trouble:
                sources = [{"node": n, "name": since} if across else since for n in nodes]
                _make(monitor, disk.node, name, sources)
    finally:
        monitor.close()


def _make(monitor: LibvirtMonitor, node: str, name: str, sources: list[Any]) -> None:
    """Have a bitmap hold what ``sources`` do and nothing else, at one moment."""
    merge = {"node": node, "target": name, "bitmaps": sources}
    monitor.execute(
        "transaction",
        actions=[
            {"type": "block-dirty-bitmap-clear", "data": {"node": node, "name": name}},
            {"type": "block-dirty-bitmap-merge", "data": merge},
        ],
    )


def _names(disk: Disk, which: Callable[[Disk, str], bool]) -> list[str]:
    names = {name for layer in disk.layers for name in layer.bitmaps}
    return sorted(name for name in names if which(disk, name))


def remove_bitmap(monitor: LibvirtMonitor, disk: Disk, name: str) -> None:
    """Remove a bitmap from every image of a disk that QEMU has open for writing."""
    for layer in disk.layers:
        if name in layer.bitmaps:
            # On a read-only backing image a stored bitmap cannot be removed; it does no harm.
            with contextlib.suppress(MonitorError):
                monitor.execute("block-dirty-bitmap-remove", node=layer.node, name=name)
