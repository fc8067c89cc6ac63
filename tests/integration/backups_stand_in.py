"""A stand-in for central: `virtvault.Client`'s questions, answered from made-up fleets.

The boundary is the client. The web server, its authentication, Redis and the browser are real.
"""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import redis

from virtvault.errors import NotReachable, UnknownDomain
from virtvault.models import (
    Alert,
    DomainStatus,
    FleetStatus,
    FleetTotals,
    HostInfo,
    Point,
    PointDisk,
    PointStatus,
    RepositoryInfo,
    RunInfo,
    SlotRecord,
)

GIB = 2**30
MIB = 2**20
HOUR = 3600
HOSTILE = "<img src=x onerror=alert(1)>"
NAMES = ("web", "db", "mail", "ci", "build", "cache", "queue", "ldap", "git", "wiki", "proxy")


def at(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Central:
    """Answers as `virtvault.Client` does, for as long as it is not `down`."""

    def __init__(self, domains: int, client: redis.Redis, *, hostile: bool = True) -> None:
        self.now = datetime.now(UTC)
        self._hostile = hostile
        self.redis = client
        self.down = False
        self.ended = "STARTED"
        self.asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._dice = random.Random(11)
        self._hosts = [f"hv{n:02}" for n in range(1, 1 + max(1, min(250, domains // 8)))]
        self.domains = [self._domain(n) for n in range(domains)]
        self.found_points: dict[str, list[Point]] = {}

    # -- the client's questions -------------------------------------------------------------------

    def fleet(self, domain: str = "") -> FleetStatus:
        self._asked("fleet")
        found = [one for one in self.domains if domain in ("", one.uuid)]
        if domain and not found:
            raise UnknownDomain(f"No domain {domain!r}.", "`virtvault status` lists them.")
        health = Counter(one.health for one in found)
        totals = FleetTotals(
            hosts=len(self._hosts) if self.domains else 0,
            hosts_gone=1 if len(self._hosts) > 1 else 0,
            domains=len(found),
            fresh=health["fresh"],
            late=health["late"],
            never=health["never"],
            no_rpo=health["no rpo"],
            unprotected=health["unprotected"],
            unreachable=sum(one.state == "unreachable" for one in found),
            failing=sum(bool(one.error) for one in found),
            running=sum(bool(one.running) for one in found),
            points=sum(one.points for one in found),
            stored=sum(one.stored for one in found),
        )
        hosts = tuple(self._host(n) for n in range(len(self._hosts))) if self.domains else ()
        beat = "central-1, since 06:12 UTC" if self.domains else ""
        return FleetStatus(
            at(datetime.now(UTC)), totals, tuple(found), hosts, 7 if found else 0, beat
        )

    def runs(
        self, *, since: str = "", domain: str = "", policy: str = "", limit: int = 1000
    ) -> list[RunInfo]:
        self._asked("runs")
        found = [
            run
            for run in self.found_runs
            if (not run.finished or run.finished >= since) and domain in ("", run.uuid)
        ]
        found.sort(key=lambda run: run.finished or "9", reverse=True)
        return found[:limit]

    def slots(self, *, since: str = "", domain: str = "", limit: int = 1000) -> list[SlotRecord]:
        self._asked("slots")
        late = [one for one in self.domains if one.health == "late" and domain in ("", one.uuid)]
        return [
            SlotRecord(
                "nightly",
                one.uuid,
                "backup",
                at(self.now - timedelta(hours=3 + n)),
                "missed" if n % 2 else "skipped",
                at(self.now - timedelta(hours=3 + n)),
                host=one.host,
                domain=one.domain,
                reason="the previous backup was still at work" if n % 2 == 0 else "no beat ran",
            )
            for n, one in enumerate(late[:12])
        ][:limit]

    def alerts(self, *, closed_since: str = "") -> list[Alert]:
        self._asked("alerts")
        found = [
            Alert(
                "rpo",
                f"{one.host}/{one.domain}",
                at(self.now - timedelta(hours=2)),
                f"Newest good point is {one.age / HOUR:.0f} h old, {one.rpo // HOUR} h allowed.",
                one.mend or "See `virtvault status` for what keeps it.",
                domain=one.domain,
                uuid=one.uuid,
                host=one.host,
            )
            for one in self.domains
            if one.health == "late"
        ]
        if len(self._hosts) > 1 and self.domains:
            gone = self._hosts[-1]
            found.append(
                Alert(
                    "host",
                    gone,
                    at(self.now - timedelta(minutes=41)),
                    f"Hypervisor {gone} was last heard of 41 min ago.",
                    "Start `virtvault worker` there, or see why the host is down.",
                    host=gone,
                )
            )
        return found

    def points(self, domain: str = "") -> list[Point]:
        self._asked("points")
        one = next((one for one in self.domains if one.uuid == domain), None)
        if one is None:
            return []
        return self.found_points.setdefault(domain, self._points(one))

    def statuses(self, domain: str = "") -> list[PointStatus]:
        self._asked("statuses")
        found = self.points(domain)
        return [
            PointStatus(
                point.id,
                point.repository,
                point.repository_id,
                point.uuid,
                verdict="good" if n % 5 == 0 else "",
                verified=at(self.now - timedelta(days=1)) if n % 5 == 0 else "",
                protected="before the upgrade" if n == 4 else "",
            )
            for n, point in enumerate(found)
        ]

    def handle(self, task_id: str) -> Central:
        return self

    def state(self) -> str:
        """Of any task that was asked for."""
        return self.ended

    def _asked(self, what: str) -> None:
        with self._lock:
            self.asked[what] += 1
        if self.down:
            raise NotReachable(
                "No answer from queue central within 10 s.",
                "See whether `virtvault central` runs, and its log.",
            )

    @cached_property
    def found_runs(self) -> list[RunInfo]:
        return [run for one in self.domains for run in self._runs(one)]

    # -- made up ----------------------------------------------------------------------------------

    def _domain(self, n: int) -> DomainStatus:
        dice = self._dice
        host = self._hosts[n % len(self._hosts)]
        gone = len(self._hosts) > 1 and host == self._hosts[-1]
        kind = dice.choices(
            ["fresh", "late", "never", "unprotected", "no rpo"], [88, 3, 1.5, 5, 2.5]
        )[0]
        kind = {0: "late", 1: "fresh", 2: "never"}.get(n, kind)
        rpo = 0 if kind in ("unprotected", "no rpo") else dice.choice((4, 24, 24, 24)) * HOUR
        share = dice.uniform(1.1, 3.5) if kind == "late" else dice.betavariate(2, 3)
        age = -1.0 if kind in ("never", "unprotected") else share * (rpo or 24 * HOUR)
        name = f"{NAMES[n % len(NAMES)]}{1 + n // len(NAMES)}"
        failing = kind in ("late", "never") or dice.random() < 0.01
        return DomainStatus(
            domain=HOSTILE if n == 0 and self._hostile else name,
            uuid=str(uuid.UUID(int=dice.getrandbits(128), version=4)),
            host=host,
            state="unreachable"
            if gone
            else dice.choice(("running", "running", "running", "shut off")),
            health=kind,
            labels={"tier": dice.choice(("prod", "test")), "team": dice.choice(("core", "shop"))},
            policies=() if kind == "unprotected" else ("nightly",),
            rpo=rpo,
            newest="" if age < 0 else "20260101T000000-aaaaaa",
            instant="" if age < 0 else at(self.now - timedelta(seconds=age)),
            age=age,
            chain=0 if age < 0 else dice.randint(1, 14),
            points=0 if age < 0 else dice.randint(3, 40),
            stored=0 if age < 0 else int(dice.lognormvariate(2.6, 0.9) * GIB),
            error="Block job of vda failed: No space left on device." if failing else "",
            mend="Free room in repository main, or prune: `virtvault prune`." if failing else "",
            error_at=at(self.now - timedelta(hours=1)) if failing else "",
        )

    def _host(self, n: int) -> HostInfo:
        host = self._hosts[n]
        gone = len(self._hosts) > 1 and n == len(self._hosts) - 1
        size = 8 * 2**40
        free = int(size * random.Random(n).uniform(0.03, 0.7))
        return HostInfo(
            host,
            not gone,
            at(self.now - timedelta(minutes=41 if gone else 0)),
            libvirt="9.0.0",
            qemu="7.2.22",
            domains=sum(one.host == host for one in self.domains)
            if len(self.domains) < 500
            else 40,
            repositories=("main",),
            storage=(RepositoryInfo("main", "3f9a1c2e", "directory", free, size),),
        )

    def _runs(self, one: DomainStatus) -> list[RunInfo]:
        dice, found = self._dice, []
        days = 28 if len(self.domains) < 500 else 1
        if one.health in ("unprotected", "never"):
            return []
        for day in range(days):
            begin = self.now - timedelta(days=day, hours=dice.uniform(0.5, 9))
            whole = day % 7 == 6
            failed = dice.random() < (0.35 if one.health == "late" and day == 0 else 0.02)
            size = int(dice.lognormvariate(2.4 if whole else -0.4, 0.5) * GIB)
            seconds = max(2.0, size / (180 * MIB) * dice.uniform(0.7, 1.8))
            found.append(
                RunInfo(
                    task_id=str(uuid.UUID(int=dice.getrandbits(128), version=4)),
                    kind="backup",
                    host=one.host,
                    state="failed" if failed else "complete",
                    started=at(begin),
                    finished=at(begin + timedelta(seconds=seconds * 12)),
                    domain=one.domain,
                    uuid=one.uuid,
                    repository="main",
                    policy="nightly",
                    slot=at(begin),
                    sync="full" if whole else "incremental",
                    seconds=seconds * 12,
                    transferred=0 if failed else size,
                    stored=0 if failed else int(size * 0.8),
                    error="Block job of vda failed: No space left on device." if failed else "",
                    mend="Free room in repository main." if failed else "",
                )
            )
        return found

    def _points(self, one: DomainStatus) -> list[Point]:
        found: list[Point] = []
        for n in range(one.points):
            moment = self.now - timedelta(seconds=one.age) - timedelta(days=one.points - 1 - n)
            whole = n % 7 == 0
            # A point that was made after the storage was rolled back stands on an older one.
            parent = "" if whole else found[-2 if n % 7 == 4 else -1].id
            stored = int((12 if whole else 0.4 + 0.1 * (n % 5)) * GIB)
            found.append(
                Point(
                    id=f"{moment:%Y%m%dT%H%M%S}-{n:06x}",
                    repository="main",
                    repository_id="3f9a1c2e",
                    task_id="t",
                    domain=one.domain,
                    uuid=one.uuid,
                    host=one.host,
                    instant=at(moment),
                    started=at(moment),
                    finished=at(moment + timedelta(seconds=40)),
                    consistency="agent-frozen",
                    paused_ms=0.0,
                    frozen_ms=41.0,
                    isolated=True,
                    disks=tuple(
                        _disk(target, parent, share, stored)
                        for target, share in (("vda", 0.7), ("vdb", 0.3))
                    ),
                )
            )
        return found


def _disk(target: str, parent: str, share: float, stored: int) -> PointDisk:
    return PointDisk(
        target=target,
        file=f"{target}.qcow2",
        sync="incremental" if parent else "full",
        parent=parent,
        reason="" if parent else "the chain had 7 points",
        virtual_size=40 * GIB,
        transferred=int(stored * share * 1.1),
        stored=int(stored * share),
        length=int(stored * share),
        source=f"/images/{target}.qcow2",
        source_format="qcow2",
        bitmap="",
        persistent=True,
    )


def progress(task_id: str, domain: str, done: int, total: int, now: datetime) -> dict[str, Any]:
    """A sample as a worker writes it."""
    return {
        "task_id": task_id,
        "phase": "copying",
        "done": done,
        "total": total,
        "rate": 118.0 * MIB,
        "eta": (total - done) / (118 * MIB),
        "disks": [
            {"target": "vda", "done": done // 2, "total": total // 2, "status": "running"},
            {
                "target": "vdb",
                "done": done - done // 2,
                "total": total - total // 2,
                "status": "running",
            },
        ],
        "updated": at(now),
        "domain": domain,
    }
