"""What a status is made of, gathered from the catalog and Redis in a few questions to each."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import redis

from beat.entries import Origin, moment
from beat.leader import who_leads
from beat.matching import Matching, PolicyMatcher
from beat.status import Facts, fleet_status
from tasks.catalog import Catalog
from virtvault import queues, runs
from virtvault.inventory import Inventories
from virtvault.models import (
    DomainInfo,
    FleetStatus,
    HostInfo,
    PolicyDocument,
    RunInfo,
)
from virtvault.runs import RunRecord
from virtvault.stored import UUID

__all__ = ["Gathering", "now"]

# A status is given again for so many times as long as it took to make: a small fleet's is always
# new, a large one's takes no more than a part of central's time however many ask.
REST = 10.0


def now() -> datetime:
    """This moment, aware, UTC."""
    return datetime.now(UTC)


class Gathering:
    """Makes statuses; one of a process, used by all its threads."""

    def __init__(self, catalog: Catalog, client: redis.Redis) -> None:
        self._catalog = catalog
        self._client = client
        self._inventories = Inventories(client)
        self._matches = _Matches()
        self._lock = threading.Lock()
        self._made: FleetStatus | None = None
        self._good_until = 0.0

    def status(self, clock: Callable[[], datetime] = now) -> FleetStatus:
        """The fleet's status, some seconds old at most where it is large.

        :raises NotReachable: Redis or the catalog does not answer.
        """
        with self._lock:
            if self._made is None or time.monotonic() >= self._good_until:
                began = time.monotonic()
                self._made = self._gather(clock())
                ended = time.monotonic()
                self._good_until = ended + REST * (ended - began) if ended - began > 0.2 else 0.0
            return self._made

    def status_without_redis(self, at: datetime) -> FleetStatus:
        """Freshness as the catalog alone tells it; which hypervisors live is not known."""
        with self._lock:
            return fleet_status(self._facts(at))

    def hosts(self) -> dict[str, HostInfo]:
        """Every hypervisor that was ever heard of; those that Redis has forgotten are gone.

        :raises NotReachable: Redis does not answer.
        """
        with self._lock:
            return self._hosts(self._catalog.hypervisors())

    def running(self, domain: str = "", policy: str = "") -> list[RunInfo]:
        """The runs at work, newest first; ``domain`` is a uuid or a name.

        :raises NotReachable: Redis does not answer.
        """
        found = [_run_info(record, name) for record, name in self._open_runs()]
        return sorted(
            (
                run
                for run in found
                if (not domain or domain in (run.uuid, run.domain))
                and (not policy or policy == run.policy)
            ),
            key=lambda run: run.started,
            reverse=True,
        )

    # -- inside -------------------------------------------------------------------------------

    def _gather(self, at: datetime) -> FleetStatus:
        facts = self._facts(at)
        hosts = self._hosts(facts.hosts.values())
        named = {(d.host, d.name): d.uuid for d in facts.domains}
        running = {}
        for run in self.running():
            uuid = run.uuid or named.get((run.host, run.domain), "")
            running[uuid] = run.task_id
        with runs.reachable():
            beat = who_leads(self._client)
        return fleet_status(replace(facts, hosts=hosts, running=running, beat=beat))

    def _facts(self, at: datetime) -> Facts:
        version = self._catalog.policies()
        number = version.number if version else 0
        document = version.document if version and version.document else PolicyDocument()
        hosts = {one.host: one for one in self._catalog.hypervisors()}
        return Facts(
            now=at,
            domains=[domain for domain, _ in self._catalog.domains()],
            hosts=hosts,
            repositories={
                host: {one.name: one.id for one in info.storage} for host, info in hosts.items()
            },
            defaults=self._catalog.default_repositories(),
            newest=self._catalog.newest(),
            last=self._catalog.last_runs(),
            match=self._matches.of(number, document),
            policy_version=number,
        )

    def _hosts(self, catalogued: Iterable[HostInfo]) -> dict[str, HostInfo]:
        known = {one.host: one for one in catalogued}
        return {**known, **{host: said.info() for host, said in self._inventories.look().items()}}

    def _open_runs(self) -> list[tuple[RunRecord, str]]:
        """Runs that a living worker holds, each with the name of its domain where it is told."""
        with runs.reachable(), self._client.pipeline(transaction=False) as pipe:
            members: Any = self._client.smembers(queues.OPEN_RUNS_KEY)
            ids = sorted(member.decode() for member in members)
            for task_id in ids:
                pipe.hgetall(queues.run_key(task_id))
                pipe.exists(queues.lease_key(task_id))
                pipe.get(queues.progress_key(task_id))
            said: Any = pipe.execute()
        return [
            (RunRecord.parse(raw), json.loads(sample)["domain"] if sample else "")
            for raw, held, sample in zip(said[::3], said[1::3], said[2::3], strict=True)
            if raw and held
        ]


class _Matches:
    """What policies mean which domain, kept while neither changes."""

    def __init__(self) -> None:
        self._number = -1
        self._matcher = PolicyMatcher(PolicyDocument())
        self._kept: dict[str, tuple[tuple[Any, ...], Matching]] = {}

    def of(self, number: int, document: PolicyDocument) -> Callable[[DomainInfo, str], Matching]:
        if number != self._number:
            self._number, self._matcher, self._kept = number, PolicyMatcher(document), {}
        return self._match

    def _match(self, domain: DomainInfo, default: str) -> Matching:
        key = (domain.name, domain.host, default, domain.labels)
        known = self._kept.get(domain.uuid)
        if known is None or known[0] != key:
            known = self._kept[domain.uuid] = (key, self._matcher.match(domain, default))
        return known[1]


def _run_info(record: RunRecord, name: str) -> RunInfo:
    asked = str(record.request.get("domain") or "")
    uuid = asked if UUID.fullmatch(asked) else ""
    policy = slot = ""
    if record.origin:
        with suppress(ValueError):  # of a later version
            origin = Origin.parse(record.origin)
            policy, slot, uuid = origin.entry.policy, moment(origin.slot), origin.entry.uuid
    return RunInfo(
        task_id=record.task_id,
        kind=record.task.removeprefix("virtvault."),
        host=record.host,
        state="running",
        started=moment(record.created),
        domain=name or ("" if uuid == asked else asked.rpartition("/")[2]),
        uuid=uuid,
        repository=str(record.request.get("repository") or ""),
        policy=policy,
        slot=slot,
        point=str(record.request.get("point") or ""),
        sync="boot" if record.request.get("boot") else "",
    )
