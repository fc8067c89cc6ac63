"""What the Backups page shows of domains and points: pure, from what the client gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from virtvault import schemas
from virtvault.models import Alert, DomainStatus, FleetStatus, HostInfo, Point, PointStatus

__all__ = ["FILTERS", "SORTS", "Fleet", "alerts", "points"]

PAGE = 50
PAGE_LIMIT = 200
# Above this many domains one cell each is no longer a picture, and each cell is a hypervisor.
CELLS = 1200
# Hypervisors shown until all are asked for.
HOSTS = 12
# Points listed of one domain; more are counted.
POINTS = 400

# What a domain is shown as, the worst first. `unreachable` outranks being fresh: its next backup
# cannot run.
RANKS = ("late", "never", "unreachable", "failing", "unprotected", "no rpo", "absent", "fresh")
FILTERS = (*RANKS, "running")


@dataclass(frozen=True)
class Row:
    """A domain, what it is shown as, and what is searched in."""

    status: DomainStatus
    shown: str
    text: str

    @property
    def overdue(self) -> float:
        """The newest point's age in RPOs; 0 where there is no age or no RPO."""
        return max(0.0, self.status.age) / self.status.rpo if self.status.rpo else 0.0


# Sort key of each column; all are ascending with the name last.
SORTS: Mapping[str, Any] = {
    "attention": lambda row: (RANKS.index(row.shown), -row.overdue),
    "domain": lambda row: (),
    "host": lambda row: (row.status.host,),
    # No point at all is older than any.
    "age": lambda row: (row.status.age < 0, row.status.age),
    "chain": lambda row: (row.status.chain,),
    "points": lambda row: (row.status.points,),
    "stored": lambda row: (row.status.stored,),
}


class Fleet:
    """One answer to ``Client.fleet()``, made ready to be looked at in pages."""

    def __init__(self, status: FleetStatus) -> None:
        self.status = status
        self.rows = [Row(one, _shown(one), _text(one)) for one in status.domains]
        self.names = {one.uuid: one.domain for one in status.domains}
        self._by_attention = sorted(self.rows, key=lambda row: _key("attention", row))
        self._hosts = sorted(status.hosts, key=_room)
        self.summary = self._summary()
        self.cells = self._cells()
        # A viewer that has these cells already is not sent them again.
        self.seen = hashlib.blake2s(json.dumps(self.cells).encode(), digest_size=8).hexdigest()

    def _summary(self) -> dict[str, Any]:
        """Totals, hypervisors and cells: what is the same for every viewer."""
        return {
            "beat": self.status.beat,
            "policy_version": self.status.policy_version,
            "totals": schemas.dump(self.status.totals),
            # Each domain once, as it is shown; and under all that is true of it.
            "shown": {name: sum(row.shown == name for row in self.rows) for name in RANKS},
            "filters": {name: sum(1 for _ in self.matching("", name)) for name in FILTERS},
            "hosts_total": len(self.status.hosts),
        }

    def hosts(self, *, all_of_them: bool = False) -> list[dict[str, Any]]:
        """Hypervisors: those that are gone first, then those with the least room."""
        found = self._hosts if all_of_them else self._hosts[:HOSTS]
        return [schemas.dump(host) for host in found]

    def page(
        self, search: str, only: str, sort: str, descending: bool, number: int, size: int = PAGE
    ) -> dict[str, Any]:
        """Page ``number`` (from 0) of the domains that match; ``matching`` counts all that do."""
        size = max(1, min(size, PAGE_LIMIT))
        if sort == "attention" and not descending:
            found = list(self.matching(search, only, self._by_attention))
        else:
            found = sorted(self.matching(search, only), key=lambda row: _key(sort, row))
            found = found[::-1] if descending else found
        last = max(0, (len(found) - 1) // size)
        number = max(0, min(number, last))
        shown = found[number * size : (number + 1) * size]
        return {
            "matching": len(found),
            "page": number,
            "pages": last + 1,
            "rows": [{**schemas.dump(row.status), "shown": row.shown} for row in shown],
        }

    def matching(
        self, search: str, only: str = "", rows: Iterable[Row] | None = None
    ) -> Iterable[Row]:
        """Rows that have each word of ``search`` in name, uuid, host, labels or policies.

        ``host:NAME`` and ``KEY=VALUE`` mean a whole host and a whole label.
        """
        words = search.lower().split()
        for row in self.rows if rows is None else rows:
            if only and not _is(row, only):
                continue
            if all(_has(row, word) for word in words):
                yield row

    def _cells(self) -> dict[str, Any]:
        if len(self.rows) <= CELLS:
            cells = [
                [row.status.domain, row.status.uuid, row.shown, _tone(row), row.status.host]
                for row in self._by_attention
            ]
            return {"of": "domains", "cells": cells}
        hosts: dict[str, dict[str, int]] = {}
        for row in self.rows:
            counts = hosts.setdefault(row.status.host, dict.fromkeys(RANKS, 0))
            counts[row.shown] += 1
        worst = sorted(hosts.items(), key=lambda item: ([-n for n in item[1].values()], item[0]))
        return {"of": "hosts", "cells": [[host, counts] for host, counts in worst]}


def alerts(found: Sequence[Alert]) -> list[dict[str, Any]]:
    """What is wrong now: the gravest kind first, within a kind the longest lasting."""
    graver = {"beat": 0, "host": 1, "rpo": 2, "failed": 3}
    ordered = sorted(found, key=lambda one: (graver.get(one.kind, 4), one.opened))
    return [schemas.dump(one) for one in ordered if not one.closed]


def points(found: Sequence[Point], statuses: Sequence[PointStatus]) -> dict[str, Any]:
    """A domain's points, newest first, with what each stands on and how it is.

    A point whose manifest cannot be read is there by its status alone (``disks`` empty).
    """
    known = {(one.repository_id, one.point): one for one in statuses}
    parents = {(p.repository_id, p.id): _parents(p) for p in found}
    rows = [
        _point(p, known.pop((p.repository_id, p.id), None), _needs(p, parents))
        for p in sorted(found, key=lambda p: (p.instant, p.id), reverse=True)
    ]
    rows = [_unreadable(one) for one in known.values()] + rows
    return {"points": rows[:POINTS], "total": len(rows)}


def _point(point: Point, status: PointStatus | None, needs: int) -> dict[str, Any]:
    syncs = {disk.sync for disk in point.disks}
    return {
        "id": point.id,
        "repository": point.repository,
        "repository_id": point.repository_id,
        "host": point.host,
        "instant": point.instant,
        "consistency": point.consistency,
        "isolated": point.isolated,
        "domain_state": point.state,
        "paused_ms": point.paused_ms,
        "frozen_ms": point.frozen_ms,
        "sync": syncs.pop() if len(syncs) == 1 else "mixed",
        "parents": _parents(point),
        "needs": needs,
        "size": sum(disk.virtual_size for disk in point.disks),
        "stored": sum(disk.stored for disk in point.disks),
        "transferred": sum(disk.transferred for disk in point.disks),
        "disks": [
            {
                "target": disk.target,
                "sync": disk.sync,
                "parent": disk.parent,
                "reason": disk.reason,
                "virtual_size": disk.virtual_size,
                "stored": disk.stored,
                "transferred": disk.transferred,
            }
            for disk in point.disks
        ],
        "skipped": point.skipped,
        "notes": list(point.notes),
        "merged": len(point.merged),
        **_how(status),
    }


def _how(status: PointStatus | None) -> dict[str, Any]:
    if status is None:  # nothing was told of it yet
        return {"state": "unknown", "why": "", "verdict": "", "verified": "", "protected": ""}
    return {
        "state": status.state,
        "why": status.why,
        "verdict": status.verdict,
        "verified": status.verified,
        "protected": status.protected,
    }


def _unreadable(status: PointStatus) -> dict[str, Any]:
    return {
        "id": status.point,
        "repository": status.repository,
        "repository_id": status.repository_id,
        "disks": [],
        "parents": [],
        "sync": "",
        **_how(status),
    }


def _parents(point: Point) -> list[str]:
    return sorted({disk.parent for disk in point.disks if disk.parent})


def _needs(point: Point, parents: Mapping[tuple[str, str], list[str]]) -> int:
    """How many points a restore of this one reads, itself included."""
    seen: set[str] = set()
    todo = [point.id]
    while todo:
        id_ = todo.pop()
        if id_ not in seen:
            seen.add(id_)
            todo += parents.get((point.repository_id, id_), [])
    return len(seen)


def _shown(one: DomainStatus) -> str:
    if one.health in ("late", "never"):
        return one.health
    if one.state in ("unreachable", "absent"):
        return one.state
    return "failing" if one.error else one.health


def _text(one: DomainStatus) -> str:
    labels = [f"{key}={value}" for key, value in one.labels.items()]
    return "\n".join([one.domain, one.uuid, one.host, *labels, *one.policies]).lower()


def _is(row: Row, only: str) -> bool:
    if only == "running":
        return bool(row.status.running)
    if only in ("unreachable", "absent"):
        return row.status.state == only
    if only == "failing":
        return bool(row.status.error)
    return row.status.health == only and row.status.state != "absent"


def _has(row: Row, word: str) -> bool:
    if word.startswith("host:"):
        return row.status.host.lower() == word.removeprefix("host:")
    if "=" in word:
        return word in row.text.split("\n")
    return word in row.text


def _key(sort: str, row: Row) -> tuple[Any, ...]:
    return (*SORTS[sort](row), row.status.domain, row.status.uuid)


def _room(host: HostInfo) -> tuple[Any, ...]:
    unusable = any(one.why for one in host.storage)
    free = [one.free / one.size for one in host.storage if one.size > 0 and one.free >= 0]
    return (host.alive, not unusable, min(free, default=1.0), host.host)


def _tone(row: Row) -> int:
    """0 to 3: how much of its RPO a fresh domain has used, or how far past it a late one is."""
    if row.shown == "fresh":
        return min(3, int(row.overdue * 4))
    if row.shown == "late":
        return min(3, int(row.overdue - 1))
    return 0
