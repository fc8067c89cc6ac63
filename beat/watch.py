"""What central answers of the fleet, and its watch over freshness, alerts and callbacks."""

from __future__ import annotations

from typing import Any

import redis
from celery import Celery
from celery.signals import worker_ready

from beat.gathering import Gathering
from beat.status import one_of
from beat.watching import Watch
from tasks.catalog import Catalog
from virtvault import queues, schemas
from virtvault.errors import UnknownDomain, VirtvaultError
from virtvault.models import FleetStatus, RunInfo
from virtvault.settings import Settings

__all__ = ["register"]

# Answers of one question at most: they go through Redis.
LIMIT = 10_000

Plain = dict[str, Any]


def register(app: Celery, catalog: Catalog, client: redis.Redis, settings: Settings) -> None:
    """Add the tasks; once the worker consumes, the watch begins too."""
    gathering = Gathering(catalog, client)
    watch = Watch(catalog, client, settings, gathering)
    # The last answer of the whole fleet: one status is made plain once.
    told: list[tuple[FleetStatus, Plain]] = []

    @app.task(name=queues.FLEET, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def fleet(domain: str = "") -> Plain:
        status = gathering.status()
        if domain:
            return schemas.dump(_meant(status, domain))
        if not told or told[0][0] is not status:
            told[:] = [(status, schemas.dump(status))]
        return told[0][1]

    @app.task(name=queues.RUNS, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def runs(since: str = "", domain: str = "", policy: str = "", limit: int = 1000) -> list[Plain]:
        count = max(0, min(limit, LIMIT))
        ended = catalog.runs(since=since, domain=domain, policy=policy, limit=count)
        return [schemas.dump(r) for r in _together(gathering.running(domain, policy), ended)][
            :count
        ]

    @app.task(name=queues.SLOTS, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def slots(since: str = "", domain: str = "", limit: int = 1000) -> list[Plain]:
        count = max(0, min(limit, LIMIT))
        return [schemas.dump(s) for s in catalog.slots(since=since, domain=domain, limit=count)]

    @app.task(name=queues.ALERTS, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def alerts(closed_since: str = "") -> list[Plain]:
        return [schemas.dump(alert) for alert in catalog.alerts(closed_since=closed_since)]

    @app.task(  # type: ignore[untyped-decorator]
        name=queues.WATCH, throws=(VirtvaultError,), ignore_result=True, send_events=False
    )
    def look() -> None:
        client.delete(queues.round_key(queues.WATCH))
        watch.look()

    @worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
    def begin(**_: Any) -> None:
        watch.start()


def _meant(status: FleetStatus, domain: str) -> FleetStatus:
    found = one_of(status, domain)
    if not found.domains:
        raise UnknownDomain(
            f"Neither a hypervisor nor the catalog has a domain {domain!r}.",
            "`virtvault status --all` lists those that are known.",
        )
    return found


def _together(running: list[RunInfo], ended: list[RunInfo]) -> list[RunInfo]:
    """Those at work first. One that has just ended may still be among them."""
    known = {run.task_id for run in ended}
    return [run for run in running if run.task_id not in known] + ended
