"""Witnesses: how a bitmap that was cleared, made anew or cut off is told from one that was not.

QEMU does not say whether a bitmap has recorded without a gap: one that somebody cleared, removed
and added again, or that lost its end when the disk was shrunk and grown back, looks like any other.
So each new bitmap begins with two granules marked, the disk's last and one by chance, and a second,
disabled bitmap keeps the same two. As long as the witness is what it was, and the bitmap still has
what the witness has, nothing was taken from the bitmap. It costs each incremental two granules.

The witness also tells which image was the active one at its point: libvirt and QEMU carry bitmaps
that record on to a new overlay, and never those that are disabled.

Not told: a bitmap that was disabled for a while, with writes in between.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from virtvault.errors import MonitorError
from workers import offline
from workers.bitmap_names import OurBitmap
from workers.disks import Disk, named_nodes
from workers.isolation import remove_node
from workers.monitor import Monitor
from workers.plan import Evidence
from workers.repository.directory import create_image

__all__ = [
    "GRANULARITY",
    "actions",
    "foreign",
    "marked",
    "seed",
    "seed_image",
    "trouble",
    "unseed",
]

log = logging.getLogger(__name__)

# Bytes; QEMU's default for what has clusters of 64 KiB or none.
GRANULARITY = offline.GRANULE
SEED = "seed"
CHECK = "virtvault-check"


def marked(virtual_size: int) -> int:
    """The bytes that a witness of a disk counts: of two granules where it has as many."""
    return GRANULARITY * min(2, -(-virtual_size // GRANULARITY))


def seed(monitor: Monitor, node: str, disk: Disk) -> bool:
    """Make a node whose bitmap has the granules to begin with; whether QEMU let us.

    Only a write sets bits, and only to a node of the disk's size can its bitmap be merged from: a
    ``null-co`` that keeps nothing of what is written to it.
    """
    try:
        monitor.execute("blockdev-add", driver="null-co", node_name=node, size=disk.virtual_size)
        monitor.execute("block-dirty-bitmap-add", node=node, name=SEED, granularity=GRANULARITY)
        for offset, length in _granules(disk.virtual_size):
            monitor.execute(
                "human-monitor-command",
                command_line=f'qemu-io {node} "write -q {offset} {length}"',
            )
        if _counts(monitor, node).get(SEED) == marked(disk.virtual_size):
            return True
        log.warning("%s: QEMU did not take the marks of a witness", node)
    except MonitorError as error:
        log.warning("%s: no witness: %s", node, error)
    unseed(monitor, node)
    return False


def unseed(monitor: Monitor, node: str) -> None:
    """Take the node of :func:`seed` away."""
    remove_node(monitor, node)


def actions(disk: Disk, new: OurBitmap, node: str) -> list[dict[str, Any]]:
    """The transaction's actions that mark the new bitmap, just added, and make its witness."""
    marks = [{"node": node, "name": SEED}]
    witness = {
        "node": disk.node,
        "name": new.witness,
        "persistent": disk.persistent,
        "disabled": True,
        "granularity": GRANULARITY,
    }
    return [
        {"type": "block-dirty-bitmap-add", "data": witness},
        *(
            {
                "type": "block-dirty-bitmap-merge",
                "data": {"node": disk.node, "target": name, "bitmaps": marks},
            }
            for name in (new.name, new.witness)
        ),
    ]


def seed_image(disk: Disk, directory: Path) -> str:
    """A qcow2 image with the same bitmap, for an image that no QEMU has open; gives its path."""
    image = directory / f"seed-{disk.target}.qcow2"
    create_image(image, disk.virtual_size)
    offline.change_bitmaps(str(image), "--add", "-g", str(GRANULARITY), SEED)
    offline.write(str(image), _granules(disk.virtual_size))
    return str(image)


def trouble(monitor: Monitor, evidence: Evidence | None) -> str:
    """Why a parent's bitmap is not to be trusted, or empty."""
    if evidence is None:
        return ""
    node = evidence.node
    counts = _counts(monitor, node)
    if counts.get(evidence.witness) != evidence.count:
        return (
            "the witness of the parent's bitmap is not what it was: the disk was shrunk since, or "
            "somebody changed its bitmaps"
        )
    with contextlib.suppress(MonitorError):  # left by a worker that was killed just here
        monitor.execute("block-dirty-bitmap-remove", node=node, name=CHECK)
    # In a bitmap that records nothing itself: what the guest writes meanwhile must not pass for
    # what is missing.
    monitor.execute(
        "block-dirty-bitmap-add", node=node, name=CHECK, disabled=True, granularity=GRANULARITY
    )
    try:
        without = _merged(monitor, node, evidence.bitmap)
        with_ = _merged(monitor, node, evidence.witness)
    finally:
        monitor.execute("block-dirty-bitmap-remove", node=node, name=CHECK)
    if with_ != without:
        return "the parent's bitmap was cleared, or removed and made anew, by somebody"
    return ""


def _merged(monitor: Monitor, node: str, name: str) -> int:
    """The bytes that the check's bitmap marks with another merged into it."""
    monitor.execute("block-dirty-bitmap-merge", node=node, target=CHECK, bitmaps=[name])
    return _counts(monitor, node)[CHECK]


def foreign(monitor: Monitor, disk: Disk, evidence: Evidence | None) -> str:
    """Why the images put on top since the point have more in them than the guest wrote, or empty.

    All that such an image has itself was written to it while it recorded, unless another was
    pulled into it (``block-stream``) whose own bitmap is gone with it.
    """
    if evidence is None:
        return ""
    for layer in disk.layers:
        if layer.node == evidence.node:
            break
        if layer.driver != "qcow2" or not Path(layer.filename).is_file():
            continue
        # The image first: what is written between the two looks may be in the bitmap alone.
        there = offline.allocated(layer.filename)
        if there > _counts(monitor, layer.node).get(evidence.bitmap, 0):
            return f"image {layer.filename} has more in it than was written to it since the point"
    return ""


def _granules(virtual_size: int) -> Sequence[tuple[int, int]]:
    """Offset and length of the last granule, and of another by chance."""
    last = (virtual_size - 1) // GRANULARITY
    found = [(last * GRANULARITY, virtual_size - last * GRANULARITY)]
    if last:
        found.append((secrets.randbelow(last) * GRANULARITY, GRANULARITY))
    return found


def _counts(monitor: Monitor, node: str) -> dict[str, int]:
    entry = named_nodes(monitor).get(node, {})
    return {b["name"]: b["count"] for b in entry.get("dirty-bitmaps", ()) if "name" in b}
