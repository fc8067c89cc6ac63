"""What removing points takes: which increments become one, and which points must stay after all.

A pure decision. A point that a kept one stands on is never just removed: the images between the
kept point and the next kept one below it are merged into one, disk by disk.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from virtvault.models import Point

__all__ = ["Merge", "Plan", "plan"]


@dataclass(frozen=True)
class Merge:
    """One disk's images that become one, that of the kept point ``top``.

    ``removed`` are the points between, the one next to ``top`` first; the image of the last one is
    what the others are committed into. ``below`` is what that stands on, empty for nothing.
    ``losing`` are other points that go and stand on one of these: from the merge's beginning on
    they are not what they were.
    """

    target: str
    top: str
    removed: tuple[str, ...]
    below: str
    losing: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The point whose image takes in the others."""
        return self.removed[-1]


@dataclass(frozen=True)
class Plan:
    """``removed`` in an order in which none is removed before what stands on it.

    ``kept_back`` maps points that were to go to why they stay for now.
    """

    merges: tuple[Merge, ...]
    removed: tuple[str, ...]
    kept_back: dict[str, str]


def plan(
    points: Sequence[Point],
    unwanted: Collection[str],
    needed: Mapping[str, str],
    damaged: Mapping[str, str],
) -> Plan:
    """Plan for the points of one domain.

    :param needed: points that must stay, and why.
    :param damaged: points whose images or chain are not whole, and how.
    """
    found = {point.id: point for point in points}
    kept_back = {id_: why for id_, why in needed.items() if id_ in unwanted}
    while True:
        removed = {id_ for id_ in unwanted if id_ in found and id_ not in kept_back}
        merges = _merges(found, removed)
        more = _conflicts(found, removed, merges) or _damage(merges, damaged)
        if not more:
            return Plan(tuple(merges), _ordered(found, removed), kept_back)
        kept_back |= more


def _merges(found: Mapping[str, Point], removed: Collection[str]) -> list[Merge]:
    merges = []
    for point in found.values():
        if point.id in removed:
            continue
        for disk in point.disks:
            group, below = [], disk.parent
            while below in removed and below not in group:
                group.append(below)
                below = _parent(found[below], disk.target)
            if group:
                losing = [
                    id_
                    for id_ in sorted(set(removed) - set(group))
                    if set(group) & set(_going(found, removed, id_, disk.target))
                ]
                merges.append(
                    Merge(disk.target, point.id, tuple(group), below, losing=tuple(losing))
                )
    return merges


def _going(
    found: Mapping[str, Point], removed: Collection[str], point: str, target: str
) -> list[str]:
    """The points that go too and that a point's disk stands on, down to the first that stays."""
    chain: list[str] = []
    step = _parent(found[point], target)
    while step in removed and step not in chain:
        chain.append(step)
        step = _parent(found[step], target)
    return chain


def _conflicts(
    found: Mapping[str, Point], removed: Collection[str], merges: Sequence[Merge]
) -> dict[str, str]:
    """Points that several others stand on: merged into one, they would be lost to the rest."""
    children: dict[tuple[str, str], set[str]] = {}
    for merge in merges:
        for child, below in zip((merge.top, *merge.removed), merge.removed, strict=False):
            children.setdefault((merge.target, below), set()).add(child)
    return {
        below: f"points {', '.join(sorted(above))} both stand on disk {target} of it"
        for (target, below), above in children.items()
        if len(above) > 1
    }


def _damage(merges: Sequence[Merge], damaged: Mapping[str, str]) -> dict[str, str]:
    """Points that would have to be merged with what is not whole."""
    found: dict[str, str] = {}
    for merge in merges:
        for point in (merge.top, *merge.removed):
            if point in damaged:
                why = f"point {merge.top} stands on it, and {point} {damaged[point]}"
                found |= {id_: why.rstrip(".") for id_ in merge.removed}
    return found


def _ordered(found: Mapping[str, Point], removed: Collection[str]) -> tuple[str, ...]:
    """What stands on others first."""
    depth: dict[str, int] = {}

    def deep(point: str, seen: tuple[str, ...] = ()) -> int:
        if point not in depth:
            below = {disk.parent for disk in found[point].disks} & set(removed) - {*seen, point}
            depth[point] = 1 + max((deep(id_, (*seen, point)) for id_ in below), default=0)
        return depth[point]

    return tuple(sorted(removed, key=lambda id_: (-deep(id_), id_)))


def _parent(point: Point, target: str) -> str:
    return next((disk.parent for disk in point.disks if disk.target == target), "")
