"""What to do with each disk: a pure decision that returns its reason.

An incremental needs the parent point present and intact in the repository, its bitmap present,
recording, consistent and free on every layer down to the image that was active at the parent's
instant, and the virtual size unchanged. Where anything of that is not certain the disk gets a
full, and the reason goes into manifest and result. So it is where a policy wants a new full.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from virtvault.models import PointDisk
from workers.bitmap_names import OurBitmap, parse
from workers.disks import Disk

__all__ = [
    "DiskPlan",
    "Evidence",
    "FullWanted",
    "ParentDisk",
    "decide",
]


@dataclass(frozen=True)
class ParentDisk:
    """One disk of a stored point as the planner sees it.

    ``trouble`` says why nothing may build on it, empty where something may. ``merged`` are the
    points that prune has folded into it.
    """

    disk: PointDisk
    trouble: str = ""
    merged: tuple[str, ...] = ()


@dataclass(frozen=True)
class FullWanted:
    """When a chain is long or old enough: at so many points, or UTC days since its full; 0: never.

    ``now`` is aware.
    """

    points: int
    days: int
    now: datetime


@dataclass(frozen=True)
class Evidence:
    """Where a parent's bitmap and its witness stand, and the bytes the witness must count."""

    node: str
    bitmap: str
    witness: str
    count: int


@dataclass(frozen=True)
class DiskPlan:
    """``sync`` with its ``reason`` (empty where it is just what was asked).

    ``sources`` are the (node, bitmap) pairs whose union is what changed since ``parent``, and what
    the user's own bitmap marks. ``counts``: a bitmap that counts from this point is made.
    ``evidence``: what tells whether the parent's bitmap is still whole, where anything does.
    """

    sync: str
    parent: str = ""
    reason: str = ""
    sources: tuple[tuple[str, str], ...] = ()
    counts: bool = True
    evidence: Evidence | None = None


def decide(
    disk: Disk,
    asked: str,
    repository_id: str,
    parents: Mapping[str, ParentDisk],
    *,
    bitmap: str = "",
    wanted: FullWanted | None = None,
) -> DiskPlan:
    """Plan one disk. ``parents`` maps the ids of this domain's points that hold this disk.

    :param bitmap: a bitmap of the user's on the active layer that marks what to copy as well.
    :param wanted: when an incremental that could be made is to be a full all the same.
    """
    if asked == "none":
        return DiskPlan("none", counts=False)
    if asked == "top":
        # Beside the chains: it stands on images that are not the repository's, so nothing of the
        # repository may come to stand on it.
        if len(disk.layers) > 1:
            return DiskPlan("top", counts=False)
        return _full(f"this {disk.format} disk has no backing image: its top is all of it")
    if asked == "full":
        return DiskPlan("full")
    plan = _incremental(disk, repository_id, parents)
    if plan.parent and wanted and (reason := _due(plan.parent, parents, wanted)):
        return _full(reason)
    if plan.parent and bitmap:
        return replace(plan, sources=(*plan.sources, (disk.node, bitmap)))
    return plan


def _incremental(disk: Disk, repository_id: str, parents: Mapping[str, ParentDisk]) -> DiskPlan:
    if disk.shared:
        return _full("other domains write to this shared disk too, which no bitmap here sees")
    candidates = {
        ours.point: ours
        for layer in disk.layers
        for ours in map(parse, layer.bitmaps)
        if ours is not None
        and (ours.repository, ours.target, ours.kind) == (repository_id, disk.target, "")
    }
    if not parents:
        return _full("first point of this disk in this repository")
    known = {point: name for point, name in candidates.items() if point in parents}
    if not known:
        if candidates:
            return _full(f"the bitmap counts from point {max(candidates)}, which is not there")
        if not disk.persistent:
            return _full(
                f"no bitmap since the last point: on {disk.format} disks bitmaps live in QEMU's "
                "memory and end with it"
            )
        return _full("no bitmap since the last point: QEMU was killed, or somebody removed it")
    problems = []
    # Any that passes is right; the newest copies least.
    for point in _newest_first(known, parents):
        parent = parents[point]
        if trouble := parent.trouble:
            problems.append(f"point {point} {trouble}")
            continue
        if parent.disk.virtual_size != disk.virtual_size:
            problems.append(
                f"resized from {parent.disk.virtual_size} to {disk.virtual_size} bytes since "
                f"point {point}"
            )
            continue
        sources, evidence, trouble = _sources(disk, known[point], parent.disk)
        if trouble:
            problems.append(trouble)
            continue
        return DiskPlan("incremental", point, "", sources, evidence=evidence)
    return _full("; ".join(problems))


def _due(parent: str, parents: Mapping[str, ParentDisk], wanted: FullWanted) -> str:
    """Why the point that would stand on ``parent`` is to be a full, empty where it is not."""
    chain = [parent]
    while (below := parents[chain[-1]].disk.parent) in parents and below not in chain:
        chain.append(below)
    if wanted.points and len(chain) >= wanted.points:
        return f"the chain has {len(chain)} points: the policy wants a full after {wanted.points}"
    # Ids begin with the time. What is merged has the data of the oldest.
    oldest = min((chain[-1], *parents[chain[-1]].merged))
    taken = datetime.strptime(oldest[:8], "%Y%m%d").date()
    # Days of the calendar: a run that begins a second earlier than last week is not put off a day.
    days = (wanted.now.astimezone(UTC).date() - taken).days
    if wanted.days and days >= wanted.days:
        return f"the chain's full is {days} days old: the policy wants one after {wanted.days}"
    return ""


def _newest_first(points: Iterable[str], parents: Mapping[str, ParentDisk]) -> list[str]:
    """Points before those they stand on; where that does not tell, by their ids."""
    points = list(points)
    stood_on = set()
    for point in points:
        below = parents[point].disk.parent
        while below and below not in stood_on:
            stood_on.add(below)
            below = parents[below].disk.parent if below in parents else ""
    return sorted(points, key=lambda point: (point not in stood_on, point), reverse=True)


def _sources(
    disk: Disk, ours: OurBitmap, parent: PointDisk
) -> tuple[tuple[tuple[str, str], ...], Evidence | None, str]:
    """The bitmaps of every layer written since the point, or why they do not cover it all.

    libvirt re-creates active bitmaps *empty* on a new snapshot overlay: one layer's bitmap alone
    may look right and miss all that was written before the snapshot. So every layer from the
    active one down to the image that was active at the point must have it. That image has the
    bitmap's witness; points without one know it by its file name. Deeper layers count too where
    they have the bitmap: a file name comes again (snapshot, commit, snapshot under the same name),
    and then the image of that name is not the one that was active at the point.
    """
    found = []
    evidence = None
    reached = False
    for layer in disk.layers:
        bitmap = layer.bitmaps.get(ours.name)
        if bitmap is None:
            if reached:
                continue
            return (), None, f"image {layer.filename} has no bitmap since the point"
        if bitmap.trouble:
            return (), None, f"the bitmap on {layer.filename} {bitmap.trouble}"
        found.append((layer.node, ours.name))
        if parent.witness and not reached and ours.witness in layer.bitmaps:
            evidence = Evidence(layer.node, ours.name, ours.witness, parent.witness)
        reached = reached or (
            evidence is not None if parent.witness else layer.filename == parent.source
        )
    if reached:
        return tuple(found), evidence, ""
    if parent.witness:
        lost = (
            "no image has the witness of the parent's bitmap any more: it was pulled, copied, or "
            "removed by somebody"
        )
    else:
        lost = f"image {parent.source}, active at the point, is not in the backing chain any more"
    return (), None, lost


def _full(reason: str) -> DiskPlan:
    return DiskPlan("full", reason=reason)
