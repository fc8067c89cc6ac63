"""Flower with a real Redis and a real worker: progress is seen where people and services look."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery

from tasks.flower import COLUMNS, LiveTask
from tests.lab.redis_server import RedisServer
from virtvault.celery_app import client_app
from virtvault.settings import Settings

ROOT = Path(__file__).parents[2]
AUTH = "operator:not a secret"
TASK_ID = "hv1.0d6b9f2e-2f7e-4b7e-9c51-0c1b8a1f4f10"
SCRIPT = "<script>alert(1)</script>"

APP = """
from virtvault import settings
from virtvault.celery_app import new_app

given = settings.load()
app = new_app(given)
app.set_current()
"""
FLOWER = (
    APP
    + """
from tasks import flower
from virtvault.errors import VirtvaultError

try:
    flower.run(app, given)
except VirtvaultError as error:
    raise SystemExit(f"{type(error).__name__}: {error}")
"""
)
# A backup that takes its next step when the test says so.
WORKER = (
    APP
    + """
import redis

@app.task(name="virtvault.backup", bind=True)
def backup(task, domain):
    client = redis.Redis.from_url(given.redis_url, socket_timeout=None)
    with app.connection_for_write() as connection:
        events = app.events.Dispatcher(connection, hostname=task.request.hostname)
        while (step := client.blpop("steps")[1].decode()) != "end":
            events.send(
                "task-progress", uuid=task.request.id, name=task.name, progress=step,
                phase="copying", domain=domain, host="hv1",
            )

app.worker_main(["worker", "-P", "threads", "-c", "2", "-n", "worker@hv1", "-l", "WARNING",
                 "--without-mingle", "--without-gossip"])
"""
)


class Web:
    """Flower's HTTP side."""

    def __init__(self, port: int, prefix: str = "") -> None:
        self.address = f"http://127.0.0.1:{port}{prefix}"

    def get(self, path: str, auth: str = AUTH, body: bytes | None = None) -> str:
        request = urllib.request.Request(self.address + path, body)
        if auth:
            request.add_header("Authorization", "Basic " + base64.b64encode(auth.encode()).decode())
        with urllib.request.urlopen(request, timeout=5) as response:
            return str(response.read().decode())

    def status(self, path: str, auth: str = AUTH) -> int:
        try:
            self.get(path, auth)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        return 200

    def rows(self, search: str = "") -> list[dict[str, Any]]:
        """What the task list of the browser gets."""
        query = {
            "draw": 1,
            "start": 0,
            "length": 15,
            "search[value]": search,
            "order[0][column]": 0,
            "order[0][dir]": "desc",
            "columns[0][data]": "progress",
        }
        answer = json.loads(self.get("/tasks/datatable?" + urllib.parse.urlencode(query)))
        return list(answer["data"])

    def row(self, progress: str) -> dict[str, Any]:
        """The task's row once it shows ``progress``."""
        found: dict[str, Any] = until(
            lambda: next((r for r in self.rows() if r["progress"] == progress), None),
            f"progress {progress!r}",
        )
        return found

    def is_up(self) -> bool:
        try:
            return self.status("/tasks") == 200
        except OSError:
            return False


def until(look: Callable[[], Any], what: str, seconds: float = 10.0) -> Any:
    """What ``look`` finds, as soon as that is something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.05)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(directory: Path, **variables: str) -> dict[str, str]:
    config = directory / "empty.toml"
    config.touch()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTVAULT_", "FLOWER_"))}
    return {**kept, "VIRTVAULT_CONFIG": str(config), "VIRTVAULT_HOST": "hv1", **variables}


@contextmanager
def running(script: str, directory: Path, **variables: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of the test's own, ended by its pid."""
    with (directory / "processes.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=environment(directory, **variables),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def stop_time(process: "subprocess.Popen[bytes]") -> float:
    """Seconds from SIGTERM to the process' end, which must be a good one."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    return time.monotonic() - began


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@contextmanager
def running_flower(
    directory: Path, broker: str, auth: str = AUTH, **more: str
) -> Iterator[tuple["subprocess.Popen[bytes]", Web]]:
    port = free_port()
    variables = {"VIRTVAULT_BROKER_URL": broker, "VIRTVAULT_FLOWER_PORT": str(port), **more}
    if auth:
        variables["FLOWER_BASIC_AUTH"] = auth
    with running(FLOWER, directory, **variables) as process:
        web = Web(port, more.get("FLOWER_URL_PREFIX", ""))
        until(web.is_up, "Flower")
        yield process, web


def send(app: Celery, domain: str) -> None:
    app.send_task("virtvault.backup", args=[domain], task_id=TASK_ID)


def test_progress_is_shown_from_start_to_success(redis_server: RedisServer, tmp_path: Path) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(redis_server.client())
        app = client_app(Settings(broker_url=redis_server.url))
        stack.callback(app.close)
        process, web = stack.enter_context(running_flower(tmp_path, redis_server.url))
        stack.enter_context(running(WORKER, tmp_path, VIRTVAULT_BROKER_URL=redis_server.url))

        send(app, "db1")
        client.rpush("steps", "42 % · 118 MiB/s · ETA 3 s")
        row = web.row("42 % · 118 MiB/s · ETA 3 s")
        assert (row["state"], row["name"]) == ("STARTED", "virtvault.backup")
        assert (row["domain"], row["host"], row["phase"]) == ("db1", "hv1", "copying")
        assert row["worker"] == "worker@hv1"
        assert [r["uuid"] for r in web.rows("state:STARTED")] == [TASK_ID]
        assert 'data-column="progress">Progress<' in web.get("/tasks")

        page = web.get(f"/task/{TASK_ID}")
        assert "<dt>Progress</dt>" in page
        assert "42 % · 118 MiB/s · ETA 3 s" in page
        assert "task-terminate" in page
        assert json.loads(web.get("/api/tasks"))[TASK_ID]["progress"] == row["progress"]
        assert json.loads(web.get(f"/api/task/info/{TASK_ID}"))["domain"] == "db1"
        assert web.status("/api/tasks", auth="") == 401
        # The Broker page reads queue lengths through the unix socket.
        assert ">central<" in web.get("/broker").replace(" ", "").replace("\n", "")

        # Flower that is restarted in mid-task learns all it shows from the next event.
        assert stop_time(process) < 2.0
        _, web = stack.enter_context(running_flower(tmp_path, redis_server.url))
        # Events are not kept for who subscribes later, so there is one until it is heard.
        until(lambda: client.rpush("steps", SCRIPT) and web.rows(), "event")
        row = web.row(SCRIPT)
        assert (row["state"], row["name"]) == ("STARTED", "virtvault.backup")
        assert SCRIPT not in web.get(f"/task/{TASK_ID}")

        client.rpush("steps", "end")
        row = web.row("100 %")
        assert (row["state"], row["domain"], row["phase"]) == ("SUCCESS", "db1", None)


def test_it_ends_at_once_while_redis_is_silent(redis_server: RedisServer, tmp_path: Path) -> None:
    with running_flower(tmp_path, redis_server.url, auth="") as (process, web):
        # Without authentication: to look at only.
        assert web.status("/tasks", auth="") == 200
        assert web.status("/api/tasks", auth="") == 401
        redis_server.freeze()
        assert web.status("/workers", auth="") == 200
        assert stop_time(process) < 2.0


def test_events_are_seen_again_after_a_restart_of_redis(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    app = client_app(Settings(broker_url=redis_server.url))
    with running_flower(tmp_path, redis_server.url) as (_, web):
        redis_server.stop()
        redis_server.start()

        def sent_and_seen() -> list[dict[str, Any]]:
            # Sent again and again: an event is not kept for who subscribes later.
            with app.connection_for_write() as connection:
                app.events.Dispatcher(connection, hostname="worker@hv1").send(
                    "task-progress", uuid=TASK_ID, name="virtvault.backup", progress="1 %"
                )
            return web.rows()

        assert until(sent_and_seen, "event")[0]["progress"] == "1 %"
    app.close()


def test_beyond_loopback_it_enqueues_nothing_but_through_our_api(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    variables = {"VIRTVAULT_FLOWER_ADDRESS": "0.0.0.0", "FLOWER_URL_PREFIX": "/backup"}
    message = json.dumps({"args": [], "queue": "central"}).encode()
    auth = f"{AUTH},"  # the comma makes a password of nothing, too
    with running_flower(tmp_path, redis_server.url, auth, **variables) as (_, web):
        with httpx.Client(headers={"Authorization": "Basic ===="}, verify=False) as nobody:
            assert nobody.get(f"{web.address}/tasks").status_code == 401
        # It names hypervisors.
        assert (web.status("/metrics", auth=""), web.status("/metrics")) == (401, 200)
        for way in ("apply", "async-apply", "send-task"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                web.get(f"/api/task/{way}/virtvault.sweep", body=message)
            with caught.value as answer:
                assert (answer.code, b"REST API at /v1/" in answer.read()) == (403, True)
            with pytest.raises(urllib.error.HTTPError) as caught:
                web.get(f"/api/task/{way}/virtvault.sweep", auth="", body=message)
            with caught.value as answer:
                assert answer.code == 401
        with redis_server.client() as client:
            assert client.llen("central") == 0
        # What takes nobody's data stays: looking, and ending a task.
        assert web.status("/api/tasks") == 200
        assert "Revoked" in web.get(f"/api/task/revoke/{TASK_ID}", body=b"")
        # Ours is below the prefix, for tokens alone.
        assert json.loads(web.get("/v1/openapi.json", auth=""))["servers"] == [{"url": "/backup"}]
        assert web.status("/v1/hosts") == 401


def test_without_authentication_it_answers_to_no_other_sites_name(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    with (
        running_flower(tmp_path, redis_server.url, auth="") as (_, web),
        httpx.Client(base_url=web.address, verify=False) as http,
    ):
        for path in ("/backups", "/tasks", "/metrics"):
            for name in ("localhost:1", "127.0.0.1", "[::1]:1"):
                assert http.get(path, headers={"Host": name}).status_code == 200
            # A name that its owner lets lead here (DNS rebinding).
            for name in ("evil.example", "127.0.0.1.evil.example:5555"):
                answer = http.get(path, headers={"Host": name})
                assert (answer.status_code, "FLOWER_BASIC_AUTH" in answer.text) == (403, True)
        assert http.get("/v1/hosts", headers={"Host": "evil.example"}).status_code == 401


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"VIRTVAULT_FLOWER_ADDRESS": "0.0.0.0"}, "is not loopback"),
        # A password of nothing is none.
        ({"VIRTVAULT_FLOWER_ADDRESS": "0.0.0.0", "FLOWER_BASIC_AUTH": ","}, "is not loopback"),
        ({"FLOWER_UNAUTHENTICATED_API": "true"}, "FLOWER_UNAUTHENTICATED_API is set"),
        ({}, "cannot listen"),
    ],
)
def test_it_refuses_to_start(variables: dict[str, str], said: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = {"VIRTVAULT_FLOWER_PORT": str(taken.getsockname()[1])}
        with running(FLOWER, tmp_path, **port, **variables) as process:
            assert process.wait(10) == 1
    assert "InvalidSettings: " in (log := (tmp_path / "processes.log").read_text())
    assert said in log


def test_it_refuses_a_flower_without_what_it_extends(tmp_path: Path) -> None:
    script = "import flower.views.tasks as t; del t.TASK_COLUMNS\n" + FLOWER
    with running(script, tmp_path) as process:
        assert process.wait(10) == 1
    said = (tmp_path / "processes.log").read_text()
    assert "NotSupported: Flower 2.2.0 lacks flower.views.tasks.TASK_COLUMNS" in said
    assert "pip install flower==2.2.0" in said


def sample(task: LiveTask, progress: str) -> None:
    task.event("progress", 9.0, 9.0, {"progress": progress, "domain": "db1", "name": "n"})


@pytest.mark.parametrize(
    ("event", "state", "shown"),
    [
        ("succeeded", "SUCCESS", "100 %"),
        ("failed", "FAILURE", "42 %"),
        ("revoked", "REVOKED", "42 %"),
    ],
)
def test_how_a_task_ended_wins_over_its_progress(event: str, state: str, shown: str) -> None:
    task = LiveTask(TASK_ID)
    task.event("started", 1.0, 1.0, {})
    sample(task, "42 % · 118 MiB/s · ETA 3 s")
    assert (task.state, task.progress) == ("STARTED", "42 % · 118 MiB/s · ETA 3 s")
    task.event(event, 10.0, 10.0, {})
    sample(task, "43 %")
    assert (task.state, task.progress) == (state, shown)


def test_a_late_start_does_not_undo_progress() -> None:
    task = LiveTask(TASK_ID)
    sample(task, "42 %")
    task.event("received", 1.0, 1.0, {"args": "('db1',)", "name": "n"})
    assert (task.state, task.args, task.progress) == ("STARTED", "('db1',)", "42 %")


def test_a_task_without_progress_shows_none() -> None:
    task = LiveTask(TASK_ID)
    task.event("succeeded", 1.0, 1.0, {})
    assert {c: task.as_dict()[c] for c in COLUMNS} == dict.fromkeys(COLUMNS)
