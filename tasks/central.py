"""Tasks of the central worker: recording, looking up, sweeping."""

from __future__ import annotations

from typing import Any

import redis
from celery import Celery

from tasks import ends
from tasks.catalog import Catalog
from tasks.known_hosts import put_back
from tasks.sweep import sweep
from virtvault import queues, schemas
from virtvault.errors import VirtvaultError
from virtvault.models import Point, PointStatus

__all__ = ["register"]


def register(app: Celery, catalog: Catalog, client: redis.Redis) -> None:
    """Add the central tasks. They send no events: Flower's list is for backups and restores."""

    @app.task(name=queues.RECORD, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def record(payload: dict[str, Any]) -> str:
        """Idempotent; its SUCCESS lets the hypervisor drop the entry from its spool."""
        catalog.record(payload)
        if "run" in payload and (run := catalog.run(payload["run"]["task_id"])):
            ends.tell(client, run)
        return "recorded"

    @app.task(name=queues.POINTS, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def points(domain: str = "") -> list[dict[str, Any]]:
        return catalog.points(domain)

    @app.task(name=queues.SHOW, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def show(point: str) -> dict[str, Any] | None:
        return catalog.show(point)

    @app.task(name=queues.STATUSES, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def statuses(domain: str = "") -> list[dict[str, Any]]:
        return catalog.statuses(domain)

    @app.task(name=queues.FATE, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def fate(point: str) -> dict[str, Any]:
        return catalog.fate(point)

    @app.task(name=queues.KNOWN, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def known() -> dict[str, dict[str, list[str]]]:
        return catalog.known()

    @app.task(name=queues.REBUILD, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def rebuild(page: dict[str, Any]) -> str:
        """One domain of one repository, as the repository itself has it."""
        catalog.rebuild(
            page["repository_id"],
            page["uuid"],
            page["at"],
            [schemas.load(Point, item) for item in page["points"]],
            [schemas.load(PointStatus, item) for item in page["statuses"]],
            page["gone"],
            page["unreadable"],
        )
        return "rebuilt"

    @app.task(name=queues.SWEEP, ignore_result=True, send_events=False)  # type: ignore[untyped-decorator]
    def sweep_task() -> None:
        client.delete(queues.round_key(queues.SWEEP))
        sweep(app, client)
        put_back(catalog, client)
