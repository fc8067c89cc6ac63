"""Alerts, callbacks and ends reach those outside: real Redis, HTTP and SMTP; central as it runs."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from beat.gathering import Gathering
from beat.leader import LEADER_KEY
from beat.watching import Watch
from tasks import ends, webhook
from tasks.catalog import Catalog
from tests.integration.scenes import until
from tests.lab import RedisServer, Stack
from tests.lab.outside import MailServer, Receiver, certificate
from virtvault import queues, schemas
from virtvault.ends import read
from virtvault.models import Alert, DomainInfo, Inventory, RepositoryInfo, RunInfo
from virtvault.settings import NotifySettings, Settings

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOTICES = (Path(__file__).parents[2] / "docs" / "notifications.md").read_text()
UUID = "11111111-2222-4333-8444-555555555555"
RUN = {
    "task_id": "t1",
    "task": queues.BACKUP,
    "request": {"domain": UUID, "repository": "main"},
    "host": "hv1",
    "started": "2026-03-01T11:00:00.000Z",
    "finished": "2026-03-01T11:00:30.000Z",
    "state": "failed",
    "error": "No room.",
    "mend": "Make some.",
}


def example(name: str) -> str:
    """A block of the document."""
    found = re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)```", NOTICES, re.S)
    assert found
    return found[1]


def shape(value: Any) -> Any:
    """Keys and types, all the way down."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) else type(value)


def text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis", numbered=True)) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    server.flush()
    with server.client() as connected:
        yield connected


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog(f"sqlite:///{tmp_path}/catalog.sqlite")
    opened.record_inventory(
        Inventory(
            "hv1",
            text(NOW - timedelta(days=1)),
            {},
            (RepositoryInfo("main", "0123abcd"),),
            (DomainInfo("db1", UUID, "hv1", "running"),),
            default="main",
        )
    )
    yield opened
    opened.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


class Central:
    """The watch of one central worker, with a clock that is set."""

    def __init__(self, catalog: Catalog, client: redis.Redis, **settings: Any) -> None:
        self.now = NOW
        self.client = client
        given = Settings(**settings)
        self.watch = Watch(catalog, client, given, Gathering(catalog, client))

    def look(self, after: float = 0) -> bool:
        self.now += timedelta(seconds=after)
        return self.watch.look(lambda: self.now)

    def deliver(self, after: float = 0) -> int:
        self.now += timedelta(seconds=after)
        return self.watch.deliver(lambda: self.now)

    def lead(self) -> None:
        self.client.set(LEADER_KEY, json.dumps({"beat": "b", "since": "s", "token": "t"}))


Make = Callable[..., Central]


@pytest.fixture
def central(catalog: Catalog, client: redis.Redis) -> Make:
    return lambda **settings: Central(catalog, client, **settings)


def test_what_is_gone_is_told_by_signed_webhook_and_so_is_its_return(
    central: Make, receiver: Receiver, client: redis.Redis, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    notify = NotifySettings(webhooks=(f"{receiver.url}/hook",), webhook_secret_file=str(secret))
    watched = central(notify=notify)
    watched.look()
    assert watched.deliver() == 0
    watched.look(61)
    watched.look(60)
    assert watched.deliver() == 2
    beat, host = receiver.taken
    assert [a["kind"] for t in (beat, host) for a in t.json["alerts"]] == ["beat", "host"]
    assert host.path == "/hook"
    assert shape(host.json) == shape(json.loads(example("webhook")))
    assert host.json["alerts"][0]["words"] == host.json["summary"]

    known: dict[str, Any] = {}
    exec(example("verify"), known)
    assert known["is_genuine"](b"hunter2", host.headers, host.body)
    assert not known["is_genuine"](b"other", host.headers, host.body)
    assert not known["is_genuine"](b"hunter2", host.headers, host.body + b" ")
    older = {**host.headers, "X-Virtvault-Timestamp": "1700000000"}
    assert not known["is_genuine"](b"hunter2", older, host.body)

    # Nothing new is nothing to tell, also after all that Redis knew is gone.
    client.flushall()
    watched.look(15)
    assert watched.deliver() == 0
    watched.lead()
    client.hset(queues.HOSTS_KEY, "hv1", text(watched.now))
    client.set(queues.host_key("hv1"), json.dumps({"host": "hv1", "seen": "", "at": ""}))
    watched.look(15)
    assert watched.deliver() == 1
    told = receiver.taken[-1].json["alerts"]
    assert {(a["event"], a["kind"]) for a in told} == {("recovered", "beat"), ("recovered", "host")}
    assert len({taken.json["id"] for taken in receiver.taken}) == 3


def test_two_central_workers_that_look_at_once_tell_once(
    central: Make, receiver: Receiver, catalog: Catalog
) -> None:
    notify = NotifySettings(webhooks=(receiver.url,))
    workers = [central(notify=notify) for _ in range(4)]
    for worker in workers:
        worker.look()
    threads = [threading.Thread(target=worker.look, args=(300,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    receiver.let_go.clear()
    senders = [threading.Thread(target=worker.deliver) for worker in workers]
    for thread in senders:
        thread.start()
    until(lambda: receiver.taken, "a POST")
    # While one of them waits for its answer the others have nothing to do.
    until(lambda: sum(thread.is_alive() for thread in senders) == 1, "the others' end")
    receiver.let_go.set()
    for thread in senders:
        thread.join(20)
    told = [(a["kind"], a["event"]) for t in receiver.taken for a in t.json["alerts"]]
    assert sorted(told) == [("beat", "opened"), ("host", "opened")]
    assert sorted(a.kind for a in catalog.alerts()) == ["beat", "host"]


def test_redis_away_is_told_too(
    central: Make, receiver: Receiver, catalog: Catalog, server: RedisServer
) -> None:
    watched = central(notify=NotifySettings(webhooks=(receiver.url,)))
    server.stop()
    try:
        watched.look()
        watched.look(61)
        assert watched.deliver() == 1
    finally:
        server.start()
    (alert,) = receiver.taken[0].json["alerts"]
    assert alert["kind"] == "beat"
    assert "Redis does not answer" in alert["words"]
    # Which hypervisors live was not known: nothing was said of them.
    assert [a.kind for a in catalog.alerts()] == ["beat"]


def test_who_does_not_take_it_is_asked_again_for_a_day_and_then_that_is_an_alert(
    central: Make, receiver: Receiver, catalog: Catalog
) -> None:
    url = f"{receiver.url}/secret-path"
    watched = central(notify=NotifySettings(webhooks=(url,)))
    watched.lead()
    catalog.add_notice(
        "n1", url, {"kind": "alerts", "summary": "", "alerts": [], "more": 0}, text(NOW)
    )
    receiver.answer = 302
    assert watched.deliver() == 0
    receiver.answer = 500
    for posts, pause in enumerate((15, 30, 60, 120, 240, 480, 900, 900), start=1):
        watched.deliver(pause - 1)
        assert len(receiver.taken) == posts
        watched.deliver(1)
        assert len(receiver.taken) == posts + 1
    assert catalog.alerts() == []
    watched.deliver(24 * 3600)
    watched.deliver(24 * 3600)
    assert len(receiver.taken) == posts + 2
    assert "/elsewhere" not in {taken.path for taken in receiver.taken}
    (alert,) = [a for a in catalog.alerts() if a.kind == "notice"]
    assert alert.subject == receiver.url
    assert "it answered 500" in alert.detail
    assert "secret-path" not in f"{alert}"
    receiver.answer = 200
    watched.look()
    assert watched.deliver() == 1
    assert [a["kind"] for a in receiver.taken[-1].json["alerts"]] == ["notice"]
    assert [a for a in catalog.alerts() if a.kind == "notice"] == []


def test_who_answers_byte_by_byte_keeps_nobody_else_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhook, "ALL", 0.2)
    over = threading.Event()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not over.wait(0.02):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        dripping = threading.Thread(target=drip, args=(listening,))
        dripping.start()
        try:
            with pytest.raises(httpx.HTTPError, match="no whole answer within"):
                webhook.post(f"http://127.0.0.1:{listening.getsockname()[1]}/", {"id": "n1"})
        finally:
            over.set()
            dripping.join(5)


def test_email_is_collected_encrypted_and_sent_again(
    central: Make, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
    password = tmp_path / "password"
    password.write_text("pa55\n")
    with MailServer(files, "pa55") as mail:
        notify = NotifySettings(
            email_to=("a@example.org", "b@example.org"),
            email_from="virtvault@example.org",
            smtp=mail.address,
            smtp_starttls=True,
            smtp_user="me",
            smtp_password_file=str(password),
        )
        watched = central(notify=notify)
        watched.look()
        watched.look(61)
        assert watched.deliver(59) == 0
        watched.look(1)
        mail.refuses = True
        assert watched.deliver() == 0
        mail.refuses = False
        assert watched.deliver(15) == 4
        assert watched.deliver(3600) == 0
    first, second = sorted(mail.letters, key=lambda letter: letter.to)
    assert [first.to, second.to] == [["a@example.org"], ["b@example.org"]]
    assert (first.encrypted, first.user) == (True, "me")
    assert first.message["Subject"].startswith("[virtvault] No beat leads")
    assert first.message["Subject"].endswith("(and 1 more)")
    assert "NEW (2)" in first.text
    assert "Hypervisor hv1 is gone" in first.text
    assert "start `virtvault worker` there" in first.text


def test_a_password_does_not_go_out_in_the_clear(central: Make, catalog: Catalog) -> None:
    notify = NotifySettings(
        email_to=("a@example.org",), smtp="mail.example.org:25", smtp_user="me", email_wait=0
    )
    watched = central(notify=notify)
    catalog.open_alert(Alert("host", "hv1", text(NOW), "x"))
    payload = {"kind": "alerts", "summary": "", "alerts": [], "more": 0}
    catalog.add_notice("n", "mailto:a@example.org", payload, text(NOW))
    assert watched.deliver() == 0
    (waiting,) = catalog.due_notices(text(NOW + timedelta(hours=1)))
    assert "would go to mail.example.org:25 unencrypted" in waiting.error


def test_a_callback_goes_where_the_settings_allow_it_alone(
    central: Make, receiver: Receiver, catalog: Catalog
) -> None:
    watched = central(callback_urls=(f"{receiver.url}/ci/",))
    for number, path in enumerate(("/ci/1", "/other", "/ci/../other")):
        catalog.add_callback(f"t{number}", f"{receiver.url}{path}")
        catalog.record({"run": {**RUN, "task_id": f"t{number}"}})
    watched.now = datetime.now(UTC) + timedelta(seconds=1)
    assert watched.deliver() == 1
    (taken,) = receiver.taken
    assert taken.path == "/ci/1"
    assert shape(taken.json) == shape(json.loads(example("callback")))
    told = schemas.load(RunInfo, taken.json["run"])
    assert (told.task_id, told.state, told.error, told.domain) == (
        "t0",
        "failed",
        "No room.",
        "db1",
    )


def test_ends_are_read_through_a_restart_and_a_flush_of_redis(
    server: RedisServer, client: redis.Redis
) -> None:
    def run(number: int) -> RunInfo:
        return RunInfo(f"t{number}", "backup", "hv1", "complete", RUN["started"])  # type: ignore[arg-type]

    for number in range(5):
        ends.tell(client, run(number))
    client.xadd(queues.ENDS_STREAM, {"run": "{"})
    assert [r.task_id for r in read(client, last=3)] == ["t3", "t4"]
    assert list(read(client, last=0)) == []
    got: list[str] = []

    def follow() -> None:
        for ended in islice(read(client, 2, follow=True), 3):
            got.append(ended.task_id)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    until(lambda: got == ["t4"], "the last of before")
    server.stop()
    server.start()
    ends.tell(client, run(6))
    until(lambda: len(got) == 2, "one after the restart")
    client.flushall()
    ends.tell(client, run(7))
    thread.join(20)
    assert got == ["t4", "t6", "t7"]


class CentralAlone(Stack):
    """A stack of the central worker alone; what hypervisors tell, the test does."""

    roles = ("central",)

    def wait_alive(self) -> None:
        pass


def test_central_killed_while_it_calls_back_calls_again_and_the_end_is_told(
    receiver: Receiver, tmp_path: Path
) -> None:
    url = f"{receiver.url}/ci/1"
    (tmp_path / "s").mkdir()
    with CentralAlone(tmp_path / "s", callback_urls=[receiver.url]) as stack:
        client = stack.client()
        assert client.fleet().totals.domains == 0
        catalog = Catalog(client.settings.catalog_url)
        catalog.add_callback("t1", url)
        catalog.close()
        receiver.let_go.clear()
        for _ in range(2):
            client.app.send_task(queues.RECORD, args=[{"run": RUN}], queue=queues.CENTRAL)
        ended = next(client.ends(last=1, follow=True))
        assert (ended.task_id, ended.state, ended.error) == ("t1", "failed", "No room.")
        until(lambda: receiver.taken, "the first call", 60)
        stack.stop("central", signal.SIGKILL)
        receiver.let_go.set()
        # Redis forgets who was about to call, and all else.
        stack.redis.flush()
        stack.start("central")
        until(lambda: len(receiver.taken) == 2, "the second call", 60)
        first, second = receiver.taken
        assert first.json == second.json
        assert second.json["run"] == schemas.dump(ended)
        assert client.runs() == [ended]
        assert client.alerts() == []
