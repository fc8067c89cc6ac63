"""The Backups page in headless Chromium: Flower's real server, a real Redis, a stand-in central."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import httpx
import pytest
import redis
from tornado.ioloop import IOLoop

from tasks import flower
from tasks.web import page, page_answers, page_views
from tasks.web.page_data import Fleet
from tests.integration.backups_stand_in import HOSTILE, Central, progress
from tests.integration.conftest import MIB
from tests.integration.test_flower import free_port, until
from tests.lab import DiskSpec, Guest, Hypervisor, Stack
from tests.lab.browser import chromium, open_page
from tests.lab.redis_server import RedisServer
from virtvault import BackupResult, Client, queues
from virtvault.celery_app import client_app
from virtvault.models import DomainStatus
from virtvault.runs import RunRecord
from virtvault.settings import Settings


class Server:
    """Flower's web server with the page, on a thread of its own; central is a stand-in."""

    def __init__(self, broker: RedisServer, central: Central, **options: object) -> None:
        self.port = free_port()
        self._settings = Settings(broker_url=broker.url, flower_port=self.port)
        self._central, self._options = central, options
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        prefix = str(options.get("url_prefix", ""))
        self.address = f"http://127.0.0.1:{self.port}" + (f"/{prefix}" if prefix else "")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(20)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.add_callback(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        self._loop = IOLoop.current()
        flower.extend()
        from flower import urls
        from flower.app import Flower
        from flower.options import options

        app = client_app(self._settings)
        options.address, options.port = "127.0.0.1", self.port
        options.url_prefix = self._options.get("url_prefix", "")
        options.basic_auth = self._options.get("basic_auth", [])
        options.auth = self._options.get("auth", "")
        options.enable_events = False
        server = Flower(capp=app, options=options, **urls.settings)
        client = cast(Client, self._central)
        server.add_handlers(".*", page.routes(self._settings, client))
        page.link(server)
        server.start_http_server()
        self._started.set()
        self._loop.start()
        app.close()


def at_work(client: redis.Redis, task_id: str, domain: DomainStatus, done: int, total: int) -> None:
    """Write to Redis what a worker writes while a backup is at work."""
    record = RunRecord(
        task_id,
        queues.BACKUP,
        queues.host_queue(domain.host),
        domain.host,
        {"domain": domain.uuid},
        "running",
        1.0,
    )
    record.write(client)
    client.set(queues.lease_key(task_id), "worker", ex=600)
    sample = progress(task_id, domain.domain, done * MIB, total * MIB, datetime.now(UTC))
    client.set(queues.progress_key(task_id), json.dumps(sample))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("page") / "redis") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def live(broker: RedisServer) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(broker.redis_py_url)
    client.flushall()
    yield client
    client.close()


def web(**options: Any) -> httpx.Client:
    """A client that reads no certificates: that alone takes longer than a question."""
    return httpx.Client(verify=False, **options)


def look_again(page: Any) -> None:
    """What a viewer who comes back to the page's tab makes it do."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def text(page: Any, selector: str) -> str:
    return str(page.locator(selector).first.inner_text())


def test_the_fleet_is_seen_at_a_glance_and_searched(
    broker: RedisServer, live: redis.Redis, browser: Any
) -> None:
    central = Central(31, live)
    expected = [one for one in central.domains if one.health in ("late", "never") or one.error]
    expected += [d for d in central.domains if d.state == "unreachable" and d not in expected]
    asked: list[str] = []
    with (
        Server(broker, central, basic_auth=["operator:secret"], url_prefix="flower") as server,
        open_page(
            browser,
            server.address + "/backups",
            http_credentials={"username": "operator", "password": "secret"},
        ) as (seen, complaints),
    ):
        seen.on("request", lambda request: asked.append(request.url))
        seen.wait_for_selector(".domains tbody tr")
        assert text(seen, "#fleet h1") == f"{len(expected)} of 31 domains need attention"
        # The worst is first, by the list and by the cells; what strangers named is text.
        late = [one for one in central.domains if one.health == "late"]
        worst = max(late, key=lambda one: one.age / one.rpo)
        assert text(seen, ".domains .name a") == worst.domain
        assert seen.locator("#cells [data-mark]").count() == 31
        assert seen.locator(f"text={HOSTILE}").count() > 0
        assert seen.locator("main img").count() == 0

        def names() -> list[str]:
            found: list[str] = seen.locator(".domains .name a").all_inner_texts()
            return found

        seen.fill("#search", "host:hv02 tier=prod")
        wanted = {
            d.domain for d in central.domains if d.host == "hv02" and d.labels["tier"] == "prod"
        }
        seen.wait_for_function(
            "n => document.querySelectorAll('.domains tbody tr').length == n", arg=len(wanted)
        )
        assert set(names()) == wanted
        seen.fill("#search", "")
        seen.wait_for_function("() => document.querySelectorAll('.domains tbody tr').length == 25")
        seen.click(".chip:has-text('never')")
        never = {d.domain for d in central.domains if d.health == "never"}
        seen.wait_for_function(
            "n => document.querySelectorAll('.domains tbody tr').length == n", arg=len(never)
        )
        assert set(names()) == never
        # What is looked at stands in the address: it can be kept, and Back goes back.
        seen.reload()
        seen.wait_for_selector(".domains tbody tr")
        assert set(names()) == never
        seen.go_back()
        seen.wait_for_function("() => document.querySelectorAll('.domains tbody tr').length == 25")
        seen.click("th button:has-text('Stored')")
        seen.click("th button:has-text('Stored')")
        seen.wait_for_selector("th[aria-sort=descending]")
        largest = max(central.domains, key=lambda one: one.stored)
        seen.wait_for_function(
            "name => document.querySelector('.domains .name a').textContent == name",
            arg=largest.domain,
        )
        assert complaints == []
        assert all(url.startswith(server.address + "/backups") for url in asked)


def test_a_domain_its_points_and_chain_by_keyboard(
    broker: RedisServer, live: redis.Redis, browser: Any
) -> None:
    central = Central(3, live)
    one = next(one for one in central.domains if one.points > 5)
    with (
        Server(broker, central) as server,
        open_page(browser, server.address + "/backups") as (seen, complaints),
    ):
        seen.wait_for_selector("#cells .cells")
        seen.focus("#cells .cells")
        place = [c[1] for c in Fleet(central.fleet()).cells["cells"]].index(one.uuid)
        for _ in range(place + 1):
            seen.keyboard.press("ArrowRight")
        assert one.domain in text(seen, "#tip")
        seen.keyboard.press("Enter")
        seen.wait_for_selector(".point")
        assert text(seen, "#domain h1") == one.domain
        points = central.points(one.uuid)
        assert seen.locator(".point").count() == min(30, len(points))
        newest, parent = points[-1], points[-1].disks[0].parent
        seen.focus(f"[data-key='point {newest.id}']")
        seen.keyboard.press("Enter")
        assert newest.id in text(seen, ".details")
        # The list was drawn anew, and the keyboard is still where it was.
        assert seen.evaluate("document.activeElement.dataset.key") == f"point {newest.id}"
        if parent:
            seen.click(f".details button:has-text('{parent}')")
            opened = seen.locator(f".point:has([data-key='point {parent}']) .details")
            assert newest.id in opened.inner_text()  # it stands on it
        # Another look at the same domain keeps what is open and what has the focus.
        key = seen.evaluate("document.activeElement.dataset.key")
        with seen.expect_response(lambda answer: "/domain/" in answer.url):
            look_again(seen)
        assert seen.evaluate("document.activeElement.dataset.key") == key
        assert seen.locator(".details").count() >= 1
        seen.go_back()
        seen.wait_for_selector(".domains tbody tr")
        seen.goto(server.address + "/backups#domain=00000000-0000-4000-8000-000000000000")
        seen.wait_for_selector("#domain h1:has-text('not known now')")
        assert complaints == []


def test_live_bars_go_on_while_central_is_down_and_all_comes_back_by_itself(
    broker: RedisServer, live: redis.Redis, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_answers, "SILENCE", 0.2)
    for name in ("LIVE_SECONDS", "FLEET_SECONDS", "HISTORY_SECONDS", "TRENDS_SECONDS"):
        monkeypatch.setattr(page_views, name, 0.1)
    central = Central(3, live)
    one = central.domains[1]
    at_work(live, "task-1", one, 420, 1000)
    with (
        Server(broker, central) as server,
        open_page(browser, server.address + "/backups") as (seen, complaints),
    ):
        bar = seen.locator("#running .task-head + .bar")
        bar.wait_for()
        assert bar.get_attribute("aria-valuenow") == "42"
        said = text(seen, ".numbers")
        assert "42.0 % · 420 MiB of 1000 MiB · 118 MiB/s · 00:05 left" in said
        assert seen.locator("#running .disk").count() == 2
        seen.wait_for_selector(".domains tbody tr")

        central.down = True
        look_again(seen)
        seen.wait_for_selector("#trouble .trouble")
        said = text(seen, "#trouble")
        assert "No answer from queue central" in said
        assert "See whether virtvault central runs" in said
        assert "Shown is what was known at" in said
        assert seen.locator("#trouble .trouble").count() == 1  # one cause, told once
        assert seen.locator(".domains tbody tr").count() == 3
        at_work(live, "task-1", one, 800, 1000)
        look_again(seen)
        seen.wait_for_selector("#running .bar[aria-valuenow='80']")
        central.down = False
        look_again(seen)
        seen.wait_for_selector("#trouble .trouble", state="detached")

        # Its worker is gone, which is said; or it has ended, and the sweep has not come by yet.
        live.delete(queues.lease_key("task-1"))
        look_again(seen)
        seen.wait_for_selector("#running >> text=No living worker has it")
        central.ended = "SUCCESS"
        look_again(seen)
        seen.wait_for_selector("#running >> text=No task is at work.")
        live.connection_pool.disconnect()
        broker.stop()
        look_again(seen)
        seen.wait_for_selector("#trouble >> text=Redis does not answer")
        broker.start()
        at_work(live, "task-2", one, 100, 1000)
        look_again(seen)
        seen.wait_for_selector("#running .bar[aria-valuenow='10']")
        seen.wait_for_selector("#trouble .trouble", state="detached")
        assert complaints == []


def test_fifty_viewers_of_ten_thousand_domains_are_one_question(
    broker: RedisServer, live: redis.Redis
) -> None:
    central = Central(10_000, live)
    with Server(broker, central) as server:
        address = server.address + "/backups/data/status"
        with ThreadPoolExecutor(50) as viewers, web(timeout=60) as client:
            answers = list(viewers.map(lambda n: client.get(f"{address}?page={n}"), range(50)))
            seen_cells = answers[0].json()["data"]["seen"]
            again = client.get(f"{address}?seen={seen_cells}")
        assert central.asked["fleet"] == 1
        bodies = [answer.json()["data"] for answer in answers]
        seen = [row["uuid"] for body in bodies for row in body["domains"]["rows"]]
        assert len(seen) == len(set(seen)) == 50 * 50
        assert bodies[0]["domains"]["matching"] == 10_000
        # A page of it and a cell for each hypervisor, never the fleet: 6 MB as it stands.
        assert max(len(answer.content) for answer in answers) < 80_000
        assert again.json()["data"]["cells"] is None


def test_a_phone_light_and_dark(broker: RedisServer, live: redis.Redis, browser: Any) -> None:
    central = Central(31, live)
    at_work(live, "task-1", central.domains[1], 420, 1000)
    domain = max(central.domains, key=lambda one: one.points)
    grounds = []
    with Server(broker, central) as server:
        for scheme in ("light", "dark"):
            with open_page(
                browser,
                server.address + "/backups",
                viewport={"width": 360, "height": 740},
                color_scheme=scheme,
                has_touch=True,
            ) as (seen, complaints):
                seen.wait_for_selector(".domains tbody tr")
                seen.wait_for_selector(".plot")
                seen.wait_for_selector("#running .bar")
                assert seen.evaluate("document.documentElement.scrollWidth") == 360
                seen.tap("#timeline .row [data-mark]")
                assert not seen.locator("#tip").is_hidden()
                grounds.append(seen.evaluate("getComputedStyle(document.body).backgroundColor"))
                seen.goto(f"{server.address}/backups#domain={domain.uuid}")
                seen.wait_for_selector(".point-head")
                seen.tap(".point-head >> nth=1")
                seen.wait_for_selector(".details")
                assert seen.evaluate("document.documentElement.scrollWidth") == 360
                assert complaints == []
    assert len(set(grounds)) == 2


def test_an_empty_fleet_says_how_to_begin(
    broker: RedisServer, live: redis.Redis, browser: Any
) -> None:
    with (
        Server(broker, Central(0, live)) as server,
        open_page(browser, server.address + "/backups") as (seen, complaints),
    ):
        seen.wait_for_selector("#fleet >> text=No domain is known yet")
        assert "virtvault worker" in text(seen, "#fleet")
        seen.wait_for_selector("#running >> text=No task is at work.")
        assert complaints == []


PATHS = (
    "/backups",
    "/backups/static/backups.js",
    *(f"/backups/data/{name}" for name in ("status", "alerts", "running", "timeline", "trends")),
    "/backups/data/domain/00000000-0000-4000-8000-000000000000",
)


def test_all_of_it_is_behind_flowers_authentication(broker: RedisServer, live: redis.Redis) -> None:
    central = Central(3, live)
    with (
        web() as client,
        Server(broker, central, basic_auth=["operator:secret"], url_prefix="flower") as server,
    ):
        for path in PATHS:
            answer = client.get(server.address + path)
            assert answer.status_code == 401, path
            assert "Basic" in answer.headers["WWW-Authenticate"]
        assert not central.asked
        auth = ("operator", "secret")
        page = client.get(server.address + "/backups", auth=auth)
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        # Flower's own pages lead here.
        assert 'href="/flower/backups"' in client.get(server.address + "/workers", auth=auth).text
        bad = client.get(server.address + "/backups/data/status?sort=nonsense", auth=auth)
        assert bad.status_code == 400
        assert "Traceback" not in bad.text
        assert client.get(server.address + "/backups/static/page.py", auth=auth).status_code == 404
    asked = central.asked.total()
    with web() as client, Server(broker, central, auth=".*@example.com") as server:
        answer = client.get(server.address + "/backups")
        assert (answer.status_code, answer.headers["Location"][:7]) == (302, "/login?")
        for path in PATHS[2:]:
            answer = client.get(server.address + path)
            assert answer.status_code == 401, path
            assert answer.json()["trouble"]["mend"] == "Reload the page to log in."
    assert central.asked.total() == asked


def test_an_address_with_the_password_in_it_works_too(
    broker: RedisServer, live: redis.Redis, browser: Any
) -> None:
    with Server(broker, Central(3, live), basic_auth=["operator:secret"]) as server:
        address = server.address.replace("//", "//operator:secret@")
        with open_page(browser, f"{address}/backups") as (seen, complaints):
            seen.wait_for_selector("#domains tr >> nth=1")
            assert not seen.locator("#trouble .trouble").count()
            assert complaints == []


def test_a_real_backup_shows_its_bar_and_then_its_point(
    workdir: Path, hypervisor: Hypervisor, boot: Callable[..., Guest], browser: Any
) -> None:
    port = free_port()
    with Stack(workdir, libvirt_uri=hypervisor.uri, flower_port=port) as stack:
        guest = boot(DiskSpec("vda", "qcow2", 64 * MIB))
        guest.qemu_io("vda", "write -P 0x41 0 24M")
        stack.start("flower")
        until(lambda: is_up(port), "Flower", 30)
        client = stack.client()
        handle = client.backup(guest.name, sync="full", speed=MIB)
        with open_page(browser, f"http://127.0.0.1:{port}/backups") as (seen, complaints):
            seen.set_default_timeout(60_000)
            task = seen.locator("#running .task", has_text=guest.name)
            task.locator("text=copying").wait_for()
            task.locator("text=MiB/s").wait_for()
            task.locator("a", has_text=guest.name).click()
            seen.wait_for_selector(f"#domain h1:has-text('{guest.name}')")
            client.set_speed(handle.task_id, 0)
            result = handle.wait(60)
            assert isinstance(result, BackupResult)
            until(lambda: client.points(result.uuid), "record of the point")
            look_again(seen)
            seen.click(f"[data-key='point {result.point}']")
            assert "nothing: it is a full" in text(seen, ".details")
            seen.wait_for_selector("#domain-runs >> text=backup, full")
            seen.wait_for_selector("#domain .task", state="hidden")
            assert complaints == []


def is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/tasks").status_code == 200
    except httpx.TransportError:
        return False
