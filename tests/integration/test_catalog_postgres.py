"""The central worker on a real PostgreSQL: what is recorded while either is down is not lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from celery import Celery

from tasks.catalog.database import LOCK
from tasks.spool import Spool
from tests.integration.scenes import until
from tests.lab import Stack
from tests.lab.postgres import Postgres
from tests.unit.test_catalog import FIRST, SECOND, UUID, now, point
from virtvault import Client, queues
from virtvault.celery_app import new_app
from virtvault.errors import Cancelled, NotReachable, VirtvaultError, WorkFailed
from virtvault.settings import load

WAITING = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


class Central(Stack):
    """Redis and the central worker alone: no hypervisor takes part but by its spool."""

    roles = ("central",)

    def wait_alive(self) -> None:
        """Wait until central answers."""
        client = self.client()

        def answers() -> bool:
            try:
                client.runs(limit=1)
            except VirtvaultError:
                return False
            return True

        until(answers, "an answer of central", 60)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def stack(workdir: Path, postgres: Postgres) -> Iterator[Central]:
    with Central(workdir, catalog_url=postgres.url(), control_timeout=5) as running:
        yield running


@pytest.fixture
def client(stack: Central) -> Client:
    return stack.client()


class Hypervisor:
    """A hypervisor's spool, as its worker has it."""

    def __init__(self, stack: Central) -> None:
        self.directory = stack.directory / "state"
        self.app: Celery = new_app(load(stack.config, {}))
        self.restart()

    def restart(self) -> None:
        """A new worker sends what lies there at once; the same one, every ten seconds."""
        self.spool = Spool(self.app, str(self.directory))

    def ended(self, task_id: str, minute: int, error: VirtvaultError | None = None) -> None:
        facts = {"domain": "web", "uuid": UUID, "started": now(minute)}
        self.spool.run(task_id, queues.BACKUP, {"domain": UUID}, "hv1", now(minute), error, facts)

    def undelivered(self) -> int:
        return len(list((self.directory / "spool").glob("*.json")))

    def deliver(self) -> bool:
        self.spool.deliver()
        return self.undelivered() == 0


def test_what_is_recorded_while_central_postgres_and_redis_are_away_is_not_lost(
    stack: Central, client: Client, postgres: Postgres
) -> None:
    hypervisor = Hypervisor(stack)
    hypervisor.spool.point(point(FIRST))
    hypervisor.ended("first", 1)
    until(hypervisor.deliver, "the first records", 30)
    assert [run.task_id for run in client.runs()] == ["first"]

    # PostgreSQL restarts under a central that stays: it is told, and goes on by itself.
    postgres.stop()
    with pytest.raises(NotReachable, match=r"catalog database .* does not answer"):
        client.runs()
    hypervisor.ended("second", 2, WorkFailed("It broke.", "Mend it."))
    postgres.start()
    hypervisor.restart()
    until(hypervisor.deliver, "what failed to be recorded", 30)

    # Central is killed with a record in its hands, which waits for the database's lock.
    with postgres.connect() as other:
        other.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
        hypervisor.ended("held", 4)
        until(lambda: other.execute(WAITING).fetchone(), "a record that waits for the lock", 30)
        stack.stop("central", signal.SIGKILL)
    hypervisor.ended("third", 3, Cancelled("Somebody cancelled it."))
    hypervisor.spool.point(replace(point(SECOND, FIRST), task_id="third"))
    stack.redis.flush()
    stack.start("central")
    hypervisor.restart()
    until(hypervisor.deliver, "what was told while central was down", 30)

    ended = {run.task_id: (run.state, run.domain, run.error) for run in client.runs()}
    assert ended == {
        "first": ("complete", "web", ""),
        "second": ("failed", "web", "It broke."),
        "third": ("cancelled", "web", "Somebody cancelled it."),
        "held": ("complete", "web", ""),
    }
    assert [item.id for item in client.points("web")] == [FIRST, SECOND]
    assert "Traceback" not in stack.log("central")
