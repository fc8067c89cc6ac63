"""Which granules of a disk to compare: ranges of them, kept as ranges, since disks are large."""

from __future__ import annotations

import bisect
import secrets
from collections.abc import Iterable, Sequence

__all__ = ["GRANULE", "Ranges", "covers", "granules", "sample", "without"]

GRANULE = 65536

# Start and end of each, in granules, in order, none touching the next.
Ranges = list[tuple[int, int]]


def granules(extents: Iterable[tuple[int, int]]) -> Ranges:
    """The granules that any of the extents (offset and length in bytes) reaches into."""
    found: Ranges = []
    for offset, length in sorted(extents):
        start, end = offset // GRANULE, -(-(offset + length) // GRANULE)
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def without(ranges: Ranges, taken: Ranges) -> Ranges:
    """What is in ``ranges`` and not in ``taken``."""
    found: Ranges = []
    at = 0
    for start, end in ranges:
        while at < len(taken) and taken[at][1] <= start:
            at += 1
        number = at
        while number < len(taken) and taken[number][0] < end:
            if start < taken[number][0]:
                found.append((start, taken[number][0]))
            start = max(start, taken[number][1])
            number += 1
        if start < end:
            found.append((start, end))
    return found


def covers(ranges: Ranges, offset: int) -> bool:
    """Whether the granule at an offset in bytes is among them."""
    number = bisect.bisect_right(ranges, (offset // GRANULE, float("inf"))) - 1
    return number >= 0 and offset // GRANULE < ranges[number][1]


def sample(ranges: Ranges, count: int) -> Sequence[int]:
    """The offsets in bytes of so many of the granules, by chance and in order."""
    total = sum(end - start for start, end in ranges)
    chosen: Sequence[int] = range(total)
    if total > count:
        chosen = sorted(secrets.SystemRandom().sample(chosen, count))
    found: list[int] = []
    before = number = 0
    for one in chosen:
        while one - before >= ranges[number][1] - ranges[number][0]:
            before += ranges[number][1] - ranges[number][0]
            number += 1
        found.append((ranges[number][0] + one - before) * GRANULE)
    return found
