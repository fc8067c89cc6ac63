"""What the Backups page shows of runs and slots over time: pure, from what the client gives."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from tasks.web.page_answers import stamp
from virtvault import schemas
from virtvault.models import RunInfo, SlotRecord

__all__ = ["SPANS", "run", "timeline", "trends"]

# Hypervisors on one page of the timeline, and runs and slots drawn for each.
HOSTS = 12
MARKS = 300
# Characters of an error: the task has all of it.
WORDS = 400

# Span of the trends to its number of buckets.
SPANS = {"24h": (24, timedelta(hours=1)), "7d": (28, timedelta(hours=6)), "30d": (30, timedelta(1))}
# Slots that nothing was run for; the others have runs.
UNRUN = ("skipped", "missed")


def timeline(
    runs: Sequence[RunInfo],
    slots: Sequence[SlotRecord],
    now: datetime,
    *,
    hours: int = 24,
    search: str = "",
    number: int = 0,
    limit: int = 0,
) -> dict[str, Any]:
    """Runs, and slots that nothing ran for, of the last ``hours``: the worst hypervisor first.

    :param limit: what was asked for at most; ``since`` tells from when on it is all there.
    """
    start = stamp(now - timedelta(hours=hours))
    hosts: dict[str, dict[str, Any]] = {}
    for one in runs:
        if not one.finished or one.finished >= start:
            _of(hosts, one.host)["runs"].append(one)
    for slot in slots:
        if slot.state in UNRUN and slot.at >= start:
            _of(hosts, slot.host)["slots"].append(slot)
    found = [_host(name, lists) for name, lists in hosts.items() if search.lower() in name.lower()]
    found.sort(key=lambda host: (-host["failed"], -host["missed"], -host["skipped"], host["host"]))
    last = max(0, (len(found) - 1) // HOSTS)
    number = max(0, min(number, last))
    return {
        "from": start,
        "to": stamp(now),
        "since": max(start, _whole_since(runs, limit), _whole_since(slots, limit)),
        "hosts": [_drawn(host) for host in found[number * HOSTS : (number + 1) * HOSTS]],
        "page": number,
        "pages": last + 1,
        "totals": {
            name: sum(host[name] for host in found)
            for name in ("complete", "running", "failed", "cancelled", "missed", "skipped")
        },
    }


def trends(runs: Sequence[RunInfo], now: datetime, span: str, *, limit: int = 0) -> dict[str, Any]:
    """Backups over time, in buckets that end now: bytes, seconds, ends.

    Each bucket: ``at`` (its begin), ``stored`` and ``transferred`` bytes, ``median`` and
    ``longest`` seconds of those that were completed (None without any), ``complete`` and
    ``failed`` counts.
    """
    count, width = SPANS[span]
    start = now - count * width
    buckets: list[list[RunInfo]] = [[] for _ in range(count)]
    for one in runs:
        if one.kind != "backup" or not one.finished:
            continue
        place = (datetime.fromisoformat(one.finished) - start) // width
        if 0 <= place < count:
            buckets[place].append(one)
    return {
        "span": span,
        "from": stamp(start),
        "to": stamp(now),
        "since": max(stamp(start), _whole_since(runs, limit)),
        "width": width.total_seconds(),
        "buckets": [_bucket(stamp(start + i * width), ones) for i, ones in enumerate(buckets)],
    }


def run(one: RunInfo) -> dict[str, Any]:
    """One run as the page gets it."""
    return {**schemas.dump(one), "error": one.error[:WORDS], "mend": one.mend[:WORDS]}


def _bucket(at: str, runs: Sequence[RunInfo]) -> dict[str, Any]:
    done = [one for one in runs if one.state == "complete"]
    seconds = [one.seconds for one in done]
    return {
        "at": at,
        "stored": sum(one.stored for one in done),
        "transferred": sum(one.transferred for one in done),
        "median": statistics.median(seconds) if seconds else None,
        "longest": max(seconds, default=None),
        "complete": len(done),
        "failed": sum(one.state == "failed" for one in runs),
    }


def _of(hosts: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    return hosts.setdefault(name, {"runs": [], "slots": []})


def _host(name: str, lists: dict[str, Any]) -> dict[str, Any]:
    states = [one.state for one in (*lists["runs"], *lists["slots"])]
    words = ("complete", "running", "failed", "cancelled", "missed", "skipped")
    return {"host": name, **lists, **{word: states.count(word) for word in words}}


def _drawn(host: dict[str, Any]) -> dict[str, Any]:
    return {
        **host,
        "runs": [run(one) for one in host["runs"][:MARKS]],
        "slots": [schemas.dump(one) for one in host["slots"][:MARKS]],
    }


def _whole_since(found: Sequence[RunInfo | SlotRecord], limit: int) -> str:
    """From when on nothing is left out; empty where nothing is.

    Lists are newest first: one that is as long as was allowed ends where it was cut.
    """
    if not limit or len(found) < limit:
        return ""
    times = [one.at if isinstance(one, SlotRecord) else one.finished for one in found]
    return min((time for time in times if time), default="")
