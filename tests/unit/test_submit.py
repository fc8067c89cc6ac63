"""``virtvault.submit``: the task's body over a real Redis and a real catalog.

No worker runs at all: what it asks of central it must find in its own process. The hypervisor is
an inventory in Redis; what is sent to it is read from its queue.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import celery._state
import pytest
from celery import Celery

from tasks import central, submit
from tasks.app import central_app
from tasks.catalog import Catalog
from tasks.submit import may_call
from tests.lab.redis_server import RedisServer
from virtvault import queues, runs, schemas
from virtvault.errors import BadInput, InvalidRequest, NotReachable, VirtvaultError
from virtvault.models import DomainInfo, Inventory, RepositoryInfo
from virtvault.runs import RunRecord
from virtvault.settings import Settings

HOST = "hv1"
UUID = "5f1d0b9e-8c1a-4d6a-9d51-3c0f7b8f2a11"
AT = "2026-11-23T12:00:00.000Z"
HOOK = "https://ci.example.com/hooks/"


@dataclass
class House:
    app: Celery
    redis: Any
    catalog: Catalog
    id: str = ""

    def submit(self, **given: Any) -> dict[str, str]:
        """As the worker runs it."""
        plain = {"task": queues.BACKUP, "request": {"domain": "web"}, "task_id": self.id, **given}
        done = self.app.tasks[queues.SUBMIT].apply(args=[plain], task_id="of-the-message")
        answer: dict[str, str] = done.get()
        return answer

    def sent(self) -> list[tuple[str, dict[str, Any]]]:
        """Task ids and requests that wait on the hypervisor's queue, oldest first."""
        found = []
        for raw in self.redis.lrange(queues.host_queue(HOST), 0, -1)[::-1]:
            message = json.loads(raw)
            body = json.loads(base64.b64decode(message["body"]))
            found.append((message["headers"]["id"], body[0][0]))
        return found

    def tell(self) -> None:
        """The hypervisor's sign of life."""
        domain = DomainInfo(name="web", uuid=UUID, host=HOST, state="running", disks=1)
        said = Inventory(HOST, AT, {}, (RepositoryInfo("main"),), (domain,))
        self.redis.set(queues.inventory_key(HOST), json.dumps(schemas.dump(said)))
        self.redis.set(queues.host_key(HOST), json.dumps({"host": HOST, "seen": AT, "at": AT}))
        self.redis.hset(queues.HOSTS_KEY, HOST, AT)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        settings = Settings(
            broker_url=server.url,
            catalog_url=f"sqlite:///{server.directory}/catalog.sqlite",
            callback_urls=(HOOK,),
            control_timeout=3,
        )
        app, client = central_app(settings), runs.connect(settings)
        made = House(app, client, Catalog(settings.catalog_url))
        # Celery gives each app's tasks to the next app, too: another test's, of the same names.
        shared = celery._state._on_app_finalizers
        before = set(shared)
        central.register(app, made.catalog, client)
        submit.register(app, made.catalog, client, settings)
        app.finalize()
        shared.clear()
        shared.update(before)
        yield made
        client.close()
        app.close()


@pytest.fixture
def house(running: House) -> House:
    """A Redis of its own, and an id that the catalog has never heard."""
    running.redis.flushall()
    running.tell()
    return replace(running, id=f"task-{uuid4()}")


def test_a_caller_need_not_know_the_host(house: House) -> None:
    assert house.submit() == {
        "task_id": house.id,
        "task": queues.BACKUP,
        "host": HOST,
        "queue": queues.host_queue(HOST),
    }
    ((task_id, request),) = house.sent()
    assert (task_id, request["domain"], request["sync"]) == (house.id, UUID, "auto")
    run = RunRecord.read(house.redis, house.id)
    assert run is not None
    assert (run.state, run.request) == ("queued", request)


def test_the_same_id_is_one_run_whatever_was_forgotten(house: House) -> None:
    first = house.submit(callback=f"{HOOK}1")
    for _ in range(2):
        assert house.submit(callback=f"{HOOK}1") == first
    # A default that is spelt out is the same request.
    plain = {"domain": "web", "sync": "auto"}
    assert house.submit(callback=f"{HOOK}1", request=plain) == first
    assert len(house.sent()) == 1
    others: list[dict[str, Any]] = [
        {"request": {"domain": "web", "sync": "full"}},
        {"request": {"domain": "other"}},
        {"callback": f"{HOOK}2"},
        {"task": queues.PRUNE, "request": {"rules": {"last": 1}}},
    ]
    for other in others:
        with pytest.raises(
            InvalidRequest, match=rf"task_id: {house.id} is the id of another .* on hv1"
        ):
            house.submit(**{"callback": f"{HOOK}1", **other})
    assert len(house.sent()) == 1

    # It has ended, Redis was flushed, the domain is gone: the catalog knows the run.
    request = house.sent()[0][1]
    ended = {"task_id": house.id, "task": queues.BACKUP, "request": request, "host": HOST}
    times = {"started": AT, "finished": AT, "state": "complete", "error": "", "mend": ""}
    house.catalog.record({"run": {**ended, **times}})
    house.redis.flushall()
    assert house.submit() == first
    assert house.sent() == []
    with pytest.raises(InvalidRequest, match="is the id of another"):
        house.submit(request={"domain": "web", "sync": "full"})


def test_after_a_flush_that_lost_it_it_is_sent_again(house: House) -> None:
    house.submit()
    house.redis.flushall()
    house.tell()
    house.submit()
    assert [task_id for task_id, _ in house.sent()] == [house.id]


def test_what_was_promised_and_not_yet_sent_is_sent(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(runs, "submit", dies)
        house.submit()
    assert house.sent() == []
    house.submit()
    assert [task_id for task_id, _ in house.sent()] == [house.id]


def test_a_message_that_is_delivered_twice_is_one_run(house: House) -> None:
    first = house.submit(task_id="")
    assert house.submit(task_id="") == first
    assert [task_id for task_id, _ in house.sent()] == [first["task_id"]]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"request": {"domain": "web", "sync": "half"}}, InvalidRequest, "backup request: sync: "),
        ({"request": {"domain": "web", "path": "/"}}, InvalidRequest, "path: unknown field"),
        ({"request": {}}, InvalidRequest, "domain: Missing"),
        ({"request": {"domain": "web", "repository": "x"}}, BadInput, "no repository 'x'"),
        ({"task": "virtvault.record"}, InvalidRequest, "submission: task: Must be one of"),
        ({"more": 1}, InvalidRequest, "more: unknown field"),
        ({"task_id": "../../x/y/z"}, InvalidRequest, "task_id"),
        ({"host": "hv2"}, NotReachable, "hv2"),
        ({"callback": "https://evil.example/a?key=secret"}, InvalidRequest, "callback"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_touched(
    house: House, given: dict[str, Any], error: type[VirtvaultError], said: str
) -> None:
    with pytest.raises(error) as caught:
        house.submit(**given)
    assert said in caught.value.message
    assert caught.value.mend
    assert "secret" not in str(caught.value)
    assert b"virtvault.backup" not in b"".join(house.redis.lrange(queues.host_queue(HOST), 0, -1))
    assert not house.redis.keys("virtvault:run*")
    assert not house.redis.keys("virtvault:submission*")


def test_a_callback_is_told_once_of_how_it_ended(house: House) -> None:
    house.submit(callback=f"{HOOK}build/7?token=x")
    run = RunRecord.read(house.redis, house.id)
    assert run is not None
    told = {"task_id": house.id, "task": run.task, "request": run.request, "host": HOST}
    told |= {"started": AT, "finished": AT, "state": "failed", "error": "No.", "mend": "Do."}
    for _ in range(2):
        house.catalog.record({"run": told})
    due = house.catalog.due_notices("2027-01-01T00:00:00.000Z", 10)
    (notice,) = [one for one in due if one.payload["task_id"] == house.id]
    assert notice.target == f"{HOOK}build/7?token=x"
    assert (notice.payload["task_id"], notice.payload["state"]) == (house.id, "failed")


ALLOWED = ("https://ci.example.com/hooks/", "http://10.0.0.7:8080")


@pytest.mark.parametrize(
    ("url", "may"),
    [
        ("https://ci.example.com/hooks/7?x=1", True),
        ("https://ci.example.com:443/hooks/7", True),
        ("https://CI.example.com/hooks/7", True),
        ("http://10.0.0.7:8080/anything", True),
        ("http://ci.example.com/hooks/7", False),
        ("https://ci.example.com/hook", False),
        ("https://ci.example.com/hooks/../admin", False),
        ("https://ci.example.com/hooks/%2e%2E/admin", False),
        # Some servers take parameters off before they look where it leads.
        ("https://ci.example.com/hooks/..;x=1/admin", False),
        ("https://ci.example.com.evil.example/hooks/", False),
        ("https://ci.example.com@evil.example/hooks/", False),
        ("https://user:pass@ci.example.com/hooks/", False),
        ("https://ci.example.com:8443/hooks/", False),
        ("https://evil.example\\@ci.example.com/hooks/", False),
        ("http://10.0.0.7:80801/", False),
        ("http://10.0.0.70:8080/", False),
        ("http://[::1", False),
        ("file:///etc/passwd", False),
    ],
)
def test_whom_a_callback_may_reach(url: str, may: bool) -> None:
    assert may_call(url, ALLOWED) is may
    assert may_call(url, ()) is False


def test_central_asks_itself_without_its_queue(house: House) -> None:
    """A restore needs the catalog, of whose threads this task holds one."""
    point = "20261123T120000Z-0123abcd"
    with pytest.raises(BadInput, match=f"{point} was pruned on {AT}"):
        house.catalog.record(
            {"removed": {"repository_id": "0123abcd", "points": [point], "at": AT}}
        )
        house.submit(task=queues.RESTORE, request={"point": point, "to": "x"})
    assert house.redis.llen(queues.CENTRAL) == 0
