"""A fleet as beats see it: a real Redis, hypervisors that only say what they have, a clock."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from beat.entries import Origin, moment
from beat.scheduler import PolicyScheduler
from tests.lab.redis_server import RedisServer
from virtvault import queues, runs, schemas
from virtvault.celery_app import client_app
from virtvault.errors import VirtvaultError
from virtvault.models import (
    DomainInfo,
    Inventory,
    Limits,
    Policy,
    PolicyDocument,
    PolicyVersion,
    RepositoryInfo,
    Schedule,
    Selector,
)
from virtvault.settings import Settings

# A Monday, midnight UTC.
MONDAY = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
NO_LIMITS = Limits()
HOUR, DAY = 3600.0, 86_400.0


def policy(name: str = "p", every: int = 3600, **more: Any) -> Policy:
    """Of all domains, all at once at each full hour."""
    schedule = more.pop("schedule", None) or Schedule(every=every, spread=0)
    return Policy(name=name, select=Selector(names=("*",)), schedule=schedule, **more)


class Stage:
    """Redis, hypervisors, beats; `now` is the time for all of them."""

    def __init__(self, redis: RedisServer, directory: Path) -> None:
        self.server = redis
        self.now = MONDAY
        self.settings = Settings(
            broker_url=redis.url, state_dir=str(directory), lease_seconds=30, leader_seconds=10
        )
        self.redis = redis.client()
        self.app = client_app(self.settings, shown=False)
        self.said: dict[str, dict[str, Any]] | None = {}
        self.ended: set[str] = set()
        self.heard: dict[str, float] = {}
        self.applied = 0
        self.fleet: dict[str, Inventory] = {}
        self.beats: list[PolicyScheduler] = []

    def close(self) -> None:
        for beat in self.beats:
            beat.close()
            beat.release_clients()
        self.redis.close()
        self.app.backend.client.close()
        self.app.close()

    # -- the fleet ----------------------------------------------------------------------------

    def apply(self, *policies: Policy, limits: Limits = NO_LIMITS) -> None:
        """Put policies in force, as central does."""
        self.applied += 1
        document = PolicyDocument(policies, limits)
        version = PolicyVersion(self.applied, moment(self.now), document=document)
        self.redis.set(queues.POLICIES_KEY, json.dumps(schemas.dump(version)))

    def host(self, name: str, uuids: Iterable[str], state: str = "running") -> None:
        """A hypervisor says what it has, and that it lives."""
        domains = tuple(DomainInfo(f"vm-{uuid[-4:]}", uuid, name, state) for uuid in uuids)
        inventory = Inventory(
            name, moment(self.now), {}, (RepositoryInfo("main"),), domains, default="main"
        )
        self.fleet[name] = inventory
        self.tell(name)

    def tell(self, name: str) -> None:
        self.redis.set(queues.inventory_key(name), json.dumps(schemas.dump(self.fleet[name])))
        self.redis.xadd(queues.INVENTORY_STREAM, {"host": name})
        self.beat_of(name)

    def beat_of(self, name: str) -> None:
        self.heard[name] = self.now
        said = {"host": name, "seen": moment(self.now), "at": self.fleet[name].at}
        self.redis.set(queues.host_key(name), json.dumps(said))
        self.redis.hset(queues.HOSTS_KEY, name, moment(self.now))

    def gone(self, name: str) -> None:
        """A hypervisor is not heard of any more."""
        self.redis.delete(queues.host_key(name))

    # -- beats --------------------------------------------------------------------------------

    def beat(self) -> PolicyScheduler:
        """One more beat. It asks this object instead of central."""
        made = _Beat(
            client_app(self.settings, shown=False), self.settings, lambda: self.now, self._answer
        )
        self.beats.append(made)
        return made

    def depose(self) -> None:
        """The leader's time has run out, as if it had been killed or were frozen."""
        self.redis.delete(f"{queues.BEAT_PREFIX}leader")
        for beat in self.beats:
            beat._leadership.held = 0.0

    def _answer(self, task: str, *_: Any) -> Any:
        if self.said is None:
            raise TimeoutError("central is down")
        assert task == queues.SCHEDULE_STATE, task
        return {k: {**v, "ended": v["task_id"] in self.ended} for k, v in self.said.items()}

    # -- runs ---------------------------------------------------------------------------------

    def sent(self, host: str) -> list[tuple[Origin, dict[str, Any]]]:
        """The messages in a hypervisor's queue, oldest first: what for, and what is asked."""
        found: Any = self.redis.lrange(queues.host_queue(host), 0, -1)
        messages = [json.loads(raw) for raw in reversed(found)]
        return [(self.origin(m["headers"]["id"]), _body(m)) for m in messages]

    def ids(self, *hosts: str) -> Counter[str]:
        """How often each task was published."""
        found: Counter[str] = Counter()
        for host in hosts:
            for raw in self.redis.lrange(queues.host_queue(host), 0, -1):
                found[json.loads(raw)["headers"]["id"]] += 1
        return found

    def origin(self, task_id: str) -> Origin:
        run = runs.RunRecord.read(self.redis, task_id)
        assert run is not None
        return Origin.parse(run.origin)

    def hold(self, run: runs.RunRecord) -> None:
        """A worker tells of a run that it holds."""
        run.write(self.redis)
        self.redis.set(queues.lease_key(run.task_id), "worker", ex=3600)

    def end(self, task_id: str, error: VirtvaultError | None = None) -> None:
        """A worker has done a run, or failed."""
        self.ended.add(task_id)
        backend = self.app.backend
        result = (
            {"instant": moment(self.now)} if error is None else backend.prepare_exception(error)
        )
        status = "SUCCESS" if error is None else "FAILURE"
        meta = {"task_id": task_id, "status": status, "result": result, "traceback": None}
        self.redis.set(backend.get_key_for_task(task_id), json.dumps(meta))

    def slots(self) -> list[dict[str, Any]]:
        """The slot records that central would have by now, oldest first."""
        waiting: Any = self.redis.lrange(f"{queues.BEAT_PREFIX}records", 0, -1)
        return [json.loads(text) for text in waiting]


class _Beat(PolicyScheduler):
    def settle(self) -> float:
        """Tick until there is nothing more to do now; gives what the last one gave."""
        for _ in range(200):
            pause = self.tick()
            asking = self.leads and not self._informed
            if pause and not asking:
                return pause
        raise AssertionError("it does not come to rest")

    def release_clients(self) -> None:
        self.board.state.client.close()
        for app in (self.app, self._shown):
            app.backend.client.close()
            app.close()


def _body(message: dict[str, Any]) -> dict[str, Any]:
    import base64

    body = base64.b64decode(message["body"])
    request: dict[str, Any] = json.loads(body)[0][0]
    return request


def uuids(count: int, start: int = 0) -> Sequence[str]:
    return [f"00000000-0000-4000-8000-{start + number:012d}" for number in range(count)]
