"""From what was found of each image to what is said of each point: pure decisions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from virtvault.models import DiskVerdict, Point, PointDisk, SourceReport
from workers.verify_layer import BAD, GOOD, UNPROVEN, Finding

__all__ = [
    "Findings",
    "Known",
    "breaks",
    "disk_verdict",
    "disks_differing",
    "newer",
    "steps",
    "worst",
]

# By point and target.
Findings = Mapping[tuple[str, str], Finding]


@dataclass(frozen=True)
class Known:
    """A domain's points that can be read, and why the others cannot."""

    points: Mapping[str, Point]
    troubles: Mapping[str, str]

    def disk(self, point: str, target: str) -> PointDisk | None:
        """A point's disk, None where the point cannot be read or has none such."""
        known = self.points.get(point)
        return next((d for d in known.disks if d.target == target), None) if known else None


def steps(known: Known, point: str, target: str) -> Iterator[tuple[str, PointDisk | None]]:
    """The points that hold a disk's chain, from ``point`` down to its full.

    The disk is None, at the end, where a link is missing or comes a second time.
    """
    seen = set[str]()
    while point:
        disk = None if point in seen else known.disk(point, target)
        yield point, disk
        if disk is None:
            return
        seen.add(point)
        point = disk.parent


def disk_verdict(known: Known, point: str, target: str, findings: Findings) -> DiskVerdict:
    """What is so of a point's disk: it is good only where its whole chain is."""
    compared = 0
    doubt = Finding(GOOD)
    for step, disk in steps(known, point, target):
        on = "" if step == point else f"stands on point {step}, which is bad: "
        if disk is None:
            why = known.troubles.get(step, "it is not there, or stands on itself")
            if newer(why):
                return DiskVerdict(target, UNPROVEN, f"point {step}: {why}", compared)
            return DiskVerdict(target, BAD, f"{on}{why.rstrip('.')}", compared)
        found = findings[step, target]
        compared += found.compared
        if found.verdict == BAD:
            return DiskVerdict(target, BAD, on + found.detail, compared)
        if found.verdict == UNPROVEN and doubt.verdict == GOOD:
            on = "" if step == point else f"stands on point {step}: "
            doubt = Finding(UNPROVEN, on + found.detail)
    return DiskVerdict(target, doubt.verdict, doubt.detail, compared)


def worst(disks: Collection[DiskVerdict]) -> tuple[str, str]:
    """The verdict of all the disks together, and why: the first that is so."""
    for verdict in (BAD, UNPROVEN):
        for disk in disks:
            if disk.verdict == verdict:
                return verdict, f"disk {disk.target}: {disk.detail}"
    return GOOD, ""


def breaks(known: Known, point: str, targets: Collection[str]) -> tuple[str, ...]:
    """The other points that stand on a point's disks (on any, where ``targets`` is empty)."""
    return tuple(
        sorted(
            other.id
            for other in known.points.values()
            if other.id != point
            and any(
                step == point
                for disk in other.disks
                if not targets or disk.target in targets
                for step, _ in steps(known, other.id, disk.target)
            )
        )
    )


def disks_differing(source: SourceReport | None) -> dict[str, int]:
    """By target, how many ranges were ever seen to differ from the live disk."""
    found: dict[str, int] = {}
    for one in source.differing if source else ():
        target = one.split()[0]
        found[target] = found.get(target, 0) + 1
    return found


def newer(trouble: str) -> bool:
    """Whether a manifest cannot be read only because a later virtvault wrote it."""
    return "upgrade virtvault" in trouble
