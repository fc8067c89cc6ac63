"""Events of real QEMUs and a real libvirtd, through Redis to who reads them."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest
from click.testing import CliRunner

from tasks import events as publishing
from tests.integration.conftest import MIB
from tests.integration.scenes import until
from tests.lab import DiskSpec, Guest, Hypervisor, RedisServer, Stack
from virtvault import queues
from virtvault.cli.main import cli
from virtvault.events import read
from virtvault.models import Event
from virtvault.settings import Settings
from workers.engine import tag_of
from workers.events import Watcher

Boot = Callable[..., Guest]

ZULU = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class Libvirtd:
    """A libvirtd of the test's own: own state, sockets, mounts and network, to be restarted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.uri = f"qemu+unix:///system?socket={directory}/run/libvirt-sock"
        for name in ("etc", "run", "var", "log"):
            (directory / name).mkdir(parents=True)
        (directory / "etc" / "libvirtd.conf").write_text(
            f'unix_sock_dir = "{directory}/run"\n'
            'auth_unix_rw = "none"\n'
            f'host_uuid = "{uuid.uuid4()}"\n'
        )
        (directory / "etc" / "qemu.conf").write_text(
            'stdio_handler = "file"\nsecurity_driver = "none"\ncgroup_controllers = []\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        mounts = " && ".join(
            f"mount --bind {self.directory}/{name} {place}"
            for name, place in {
                "etc": "/etc/libvirt",
                "run": "/run/libvirt",
                "var": "/var/lib/libvirt",
                "log": "/var/log/libvirt",
            }.items()
        )
        command = f"{mounts} && exec libvirtd --pid-file /run/libvirt/libvirtd.pid"
        with (self.directory / "libvirtd.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--net", "sh", "-ec", command], stdout=log, stderr=log
            )
        until(self.answers, "the test's own libvirtd")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    def freeze(self) -> None:
        """Stop the process: clients stay connected and get no answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def answers(self) -> bool:
        try:
            libvirt.open(self.uri).close()
        except libvirt.libvirtError:
            return False
        return True

    def domain(self) -> libvirt.virDomain:
        """A domain without disks or system, paused."""
        xml = f"""
        <domain type='qemu'><name>vv-{uuid.uuid4().hex[:8]}</name><memory unit='MiB'>64</memory>
          <os><type arch='x86_64' machine='q35'>hvm</type></os>
          <devices><controller type='usb' model='none'/><memballoon model='none'/></devices>
        </domain>"""
        return libvirt.open(self.uri).createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)

    def again(self, domain: libvirt.virDomain) -> libvirt.virDomain:
        """The domain over a new connection."""
        return libvirt.open(self.uri).lookupByName(domain.name())


@pytest.fixture
def libvirtd(workdir: Path, hypervisor: Hypervisor) -> Iterator[Libvirtd]:
    # The machine's own is asked for only so that libvirt's directories are there to mount over.
    own = Libvirtd(workdir / "own")
    try:
        yield own
    finally:
        if own.answers():
            for domain in libvirt.open(own.uri).listAllDomains():
                domain.destroy()
        own.stop()


@pytest.fixture
def redis_server(workdir: Path) -> Iterator[RedisServer]:
    with RedisServer(workdir / "redis") as running:
        yield running


class Heard:
    """All that a watcher was heard to say so far."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.events: list[Event] = []

    def names(self, domain: str = "") -> list[str]:
        self.events += self.watcher.take(0.05)
        return [e.event for e in self.events if e.domain == domain]

    def wait(self, name: str, domain: str = "", count: int = 1) -> Event:
        """The event of that name, its ``count``-th."""
        until(lambda: self.names(domain).count(name) >= count, f"{name} in {self.events}", 40)
        return [e for e in self.events if (e.event, e.domain) == (name, domain)][count - 1]


@pytest.fixture
def watch(settings: Settings) -> Iterator[Callable[..., Heard]]:
    started: list[Watcher] = []

    def begin(uri: str, **options: Any) -> Heard:
        watcher = Watcher(replace(settings, libvirt_uri=uri), **options)
        watcher.start()
        started.append(watcher)
        return Heard(watcher)

    yield begin
    for watcher in started:
        watcher.stop()


@contextmanager
def published(watcher: Watcher, server: RedisServer) -> Iterator[None]:
    """The publisher at work, as in the control role."""
    stopping = threading.Event()
    with server.client() as client:
        thread = threading.Thread(target=publishing.publish, args=(watcher, client, stopping))
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join(20)
            assert not thread.is_alive()


def qmp(domain: libvirt.virDomain, command: str) -> None:
    reply = libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": command}), 0)
    assert "return" in json.loads(reply), reply


def connections() -> int:
    """Connections that are held by anybody, libvirt's own callbacks included."""
    gc.collect()
    return sum(isinstance(found, libvirt.virConnect) for found in gc.get_objects())


# -- the watcher ----------------------------------------------------------------------------------


def test_the_life_of_a_domain_is_told_in_qemus_and_libvirts_words(
    libvirtd: Libvirtd, watch: Callable[..., Heard]
) -> None:
    libvirtd.start()
    heard = watch(libvirtd.uri)
    first = heard.wait("WATCHER_CONNECTED")
    assert first.data == {"missing_since": ""}
    domain = libvirtd.domain()
    name = domain.name()
    before = time.time()
    qmp(domain, "cont")
    qmp(domain, "stop")
    after = time.time()
    domain.destroy()
    heard.wait("stopped", name)
    assert heard.names(name) == [
        *("started", "suspended"),
        *("RESUME", "resumed", "STOP", "suspended", "SHUTDOWN", "shutdown", "stopped"),
    ]
    told = {event.event: event for event in heard.events if event.domain == name}
    assert told["started"].data == {"detail": "booted"}
    assert told["stopped"].data == {"detail": "destroyed"}
    assert told["SHUTDOWN"].data == {"guest": False, "reason": "host-signal"}
    assert {event.uuid for event in told.values()} == {domain.UUIDString()}
    assert all(ZULU.fullmatch(event.at) for event in heard.events)
    # QEMU's own clock, cut to the millisecond.
    stopped = _epoch(told["STOP"].at)
    assert before - 0.001 <= stopped <= after


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restarted_libvirtd_is_listened_to_again_and_the_gap_is_told(
    libvirtd: Libvirtd, watch: Callable[..., Heard], how: signal.Signals
) -> None:
    libvirtd.start()
    heard = watch(libvirtd.uri)
    domain = libvirtd.domain()
    name = domain.name()
    heard.wait("WATCHER_CONNECTED")
    held = 0
    for restart in (1, 2, 3):
        libvirtd.stop(how)
        lost = heard.wait("WATCHER_DISCONNECTED", count=restart)
        assert lost.data["reason"]
        libvirtd.start()
        back = heard.wait("WATCHER_CONNECTED", count=restart + 1)
        # What libvirtd was not there for may be missing, and no less is said to be.
        assert "" < back.data["missing_since"] <= lost.at <= back.at
        qmp(libvirtd.again(domain), "cont")
        qmp(libvirtd.again(domain), "stop")
        heard.wait("STOP", name, count=restart)
        if restart == 1:
            held = connections()
    # Once each: no registration of an earlier connection is left.
    time.sleep(0.5)
    assert heard.names(name).count("RESUME") == heard.names(name).count("STOP") == 3
    assert heard.names() == ["WATCHER_CONNECTED"] + 3 * [
        "WATCHER_DISCONNECTED",
        "WATCHER_CONNECTED",
    ]
    assert connections() <= held


def test_a_hung_libvirtd_is_noticed_and_the_gap_begins_before_it_hung(
    libvirtd: Libvirtd, watch: Callable[..., Heard]
) -> None:
    libvirtd.start()
    heard = watch(libvirtd.uri)
    heard.wait("WATCHER_CONNECTED")
    hung = time.time()
    libvirtd.freeze()
    try:
        heard.wait("WATCHER_DISCONNECTED")
    finally:
        libvirtd.thaw()
    assert _epoch(heard.wait("WATCHER_CONNECTED", count=2).data["missing_since"]) <= hung
    heard.wait("started", libvirtd.domain().name())


def test_a_libvirtd_that_is_not_there_at_first_is_told_once_and_then_listened_to(
    libvirtd: Libvirtd, watch: Callable[..., Heard]
) -> None:
    heard = watch(libvirtd.uri)
    assert "does not answer" in heard.wait("WATCHER_DISCONNECTED").data["reason"]
    time.sleep(1.5)
    libvirtd.start()
    heard.wait("WATCHER_CONNECTED")
    heard.wait("started", libvirtd.domain().name())
    assert heard.names() == ["WATCHER_DISCONNECTED", "WATCHER_CONNECTED"]


def test_a_disk_that_cannot_grow_is_told_with_its_reason(
    hypervisor: Hypervisor, boot: Boot, workdir: Path, watch: Callable[..., Heard]
) -> None:
    place = workdir / "guest"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96M,mode=711", "tmpfs", place], check=True)
    try:
        guest = boot(DiskSpec("vda", "raw", 256 * MIB), boot=True, writer=True)
        guest.wait_ready()
        heard = watch(hypervisor.uri)
        heard.wait("WATCHER_CONNECTED")
        with pytest.raises(OSError, match="No space"), (place / "filler").open("wb") as filler:
            while True:
                filler.write(bytes(MIB))
        failed = heard.wait("BLOCK_IO_ERROR", guest.name)
        assert (failed.data["operation"], failed.data["action"]) == ("write", "stop")
        assert "No space" in failed.data["reason"]
        assert heard.wait("suspended", guest.name).data == {"detail": "ioerror"}
        guest.close()
        guest.close = lambda: None  # type: ignore[method-assign]
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


# -- Redis ----------------------------------------------------------------------------------------


def test_events_wait_for_redis_and_come_in_order(
    libvirtd: Libvirtd, redis_server: RedisServer, watch: Callable[..., Heard]
) -> None:
    libvirtd.start()
    redis_server.stop()
    watcher = watch(libvirtd.uri).watcher
    with published(watcher, redis_server):
        domain = libvirtd.domain()
        for _ in range(5):
            qmp(domain, "cont")
            qmp(domain, "stop")
        redis_server.start()
        with redis_server.client() as client:
            stops = ("STOP",)
            until(lambda: len(list(read(client, domain.name(), stops))) == 5, "the events")
            found = list(read(client, domain.name(), ("stop", "resume")))
            assert [event.event for event in found] == ["RESUME", "STOP"] * 5
            assert [event.at for event in found] == sorted(event.at for event in found)
            # A frozen Redis holds up nobody but the publisher.
            redis_server.freeze()
            qmp(domain, "cont")
            domain.destroy()
            redis_server.thaw()
            until(lambda: list(read(client, domain.name(), ("stopped",))), "the end")


def test_what_redis_was_away_too_long_for_is_counted(
    libvirtd: Libvirtd, redis_server: RedisServer, watch: Callable[..., Heard]
) -> None:
    libvirtd.start()
    heard = watch(libvirtd.uri, kept=10)
    heard.wait("WATCHER_CONNECTED")
    domain = libvirtd.domain()
    heard.wait("suspended", domain.name())
    for _ in range(10):
        qmp(domain, "cont")
        qmp(domain, "stop")
    domain.destroy()
    until(lambda: heard.watcher._heard._events[-1].event == "stopped", "the last event")
    with published(heard.watcher, redis_server), redis_server.client() as client:
        until(lambda: list(read(client, names=["stopped"])), "the events")
        found = list(read(client))
    missed, *kept = found
    # 10 times RESUME, resumed, STOP, suspended, then SHUTDOWN, shutdown, stopped: 10 are kept.
    assert (missed.event, missed.data) == ("WATCHER_MISSED", {"count": 33})
    assert len(kept) == 10
    assert missed.at <= kept[0].at


def test_the_stream_is_bounded(
    libvirtd: Libvirtd,
    redis_server: RedisServer,
    watch: Callable[..., Heard],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publishing, "STREAM_LENGTH", 100)
    libvirtd.start()
    heard = watch(libvirtd.uri)
    heard.wait("WATCHER_CONNECTED")
    domain = libvirtd.domain()
    with redis_server.client() as client:
        # Redis cuts whole nodes of a hundred entries.
        for _ in range(300):
            write(client, Event("2026-01-31T04:05:06.123Z", "hv1", "STOP"))
        with published(heard.watcher, redis_server):
            domain.destroy()
            until(lambda: list(read(client, names=["stopped"])), "the events")
        assert 100 <= client.xlen(queues.EVENTS_STREAM) < 250


# -- reading --------------------------------------------------------------------------------------

AT = "2026-01-31T04:05:06.123Z"
DB1, DB2 = str(uuid.uuid4()), str(uuid.uuid4())


def write(client: Any, event: Event, entry_id: str = "*") -> None:
    """An entry as it stands in the stream."""
    fields = {
        **{"at": event.at, "host": event.host, "event": event.event},
        **{"domain": event.domain, "uuid": event.uuid, "data": json.dumps(event.data)},
    }
    client.xadd(queues.EVENTS_STREAM, fields, id=entry_id)


def test_events_are_chosen_by_domain_name_host_and_number(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        assert list(read(client)) == []
        completed = Event(AT, "hv1", "BLOCK_JOB_COMPLETED", "db1", DB1, {"len": 1})
        elsewhere = Event(AT, "hv2", "BLOCK_JOB_ERROR", "db1", DB2)
        other = Event(AT, "hv1", "stopped", "web", str(uuid.uuid4()), {"detail": "crashed"})
        gap1 = Event(AT, "hv1", "WATCHER_CONNECTED", data={"missing_since": AT})
        gap2 = Event(AT, "hv2", "WATCHER_CONNECTED", data={"missing_since": AT})
        gap3 = Event(AT, "hv3", "WATCHER_CONNECTED", data={"missing_since": AT})
        everything = [gap1, completed, elsewhere, other, gap2, gap3]
        for event in everything:
            write(client, event)
        assert list(read(client)) == everything
        assert list(read(client, last=2)) == [gap2, gap3]
        assert list(read(client, last=0)) == []
        assert list(read(client, names=["block_job_*", "Stopped"])) == [completed, elsewhere, other]
        assert list(read(client, host="hv2")) == [elsewhere, gap2]
        # Gaps of the hypervisors a domain was seen on are gaps of the domain.
        assert list(read(client, "db1")) == [gap1, completed, elsewhere, gap2]
        assert list(read(client, DB1)) == [gap1, completed]
        assert list(read(client, "hv2/db1")) == [elsewhere, gap2]
        assert list(read(client, "hv2/web")) == []
        # The last of a kind is found behind thousands of others.
        with client.pipeline() as pipe:
            for _ in range(2500):
                write(pipe, other)
            pipe.execute()
        assert list(read(client, names=["BLOCK_JOB_ERROR"])) == [elsewhere]
        assert list(read(client, "db1", last=1)) == [gap2]


def test_an_entry_that_is_wrong_hides_no_other(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        good = Event(AT, "hv1", "STOP", "db1", DB1)
        for wrong in ({"event": "x"}, {"data": "{"}, {b"\xff": b"\xff"}):
            client.xadd(queues.EVENTS_STREAM, wrong)
            write(client, good)
        write(client, replace(good, at="yesterday"))
        assert list(read(client)) == [good] * 3


@pytest.mark.parametrize("clock", ["goes on", "went back"])
def test_following_goes_on_after_a_flush_and_a_restart(
    redis_server: RedisServer, clock: str
) -> None:
    first, second, third, unwanted = (
        Event(AT, "hv1", name, "db1", DB1) for name in ("STOP", "RESUME", "SHUTDOWN", "started")
    )
    with redis_server.client() as client, redis_server.client() as reader:
        tomorrow = f"{int((time.time() + 86400) * 1000)}-0"
        write(client, first, tomorrow if clock == "went back" else "*")
        found: list[Event] = []

        def follow() -> None:
            for event in read(reader, names=["s*", "resume", "shutdown"], follow=True):
                if event.event != "started":
                    found.append(event)
                if len(found) == 3:
                    return

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        until(lambda: found == [first], "the past")
        client.flushall()
        write(client, unwanted)
        write(client, second)
        until(lambda: found == [first, second], "what came after the flush")
        redis_server.stop()
        redis_server.start()
        write(client, third)
        until(lambda: found == [first, second, third], "what came after the restart")
        thread.join(10)
        assert not thread.is_alive()


# -- all of it ------------------------------------------------------------------------------------


@contextmanager
def following(stack: Stack, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``virtvault events --follow`` as a process."""
    program = "from virtvault.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", program, "events", "--follow", *arguments],
        # A shell's background jobs, and what they start, are born ignoring it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "VIRTVAULT_CONFIG": str(stack.config)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_backups_jobs_are_among_the_events(
    workdir: Path, hypervisor: Hypervisor, boot: Boot
) -> None:
    guest = boot(DiskSpec("vda", "qcow2", 64 * MIB))
    guest.qemu_io("vda", "write -P 0x41 1M 8M")
    with Stack(workdir, libvirt_uri=hypervisor.uri) as stack:
        client = stack.client()
        until(lambda: list(client.events(names=["WATCHER_CONNECTED"])), "the watcher")
        with following(stack, guest.name, "--json") as follower:
            handle = client.backup(guest.name)
            handle.wait(60)
            ended = ("--event", "block_job_completed")
            until(lambda: list(client.events(guest.name, names=ended[1:])), "the job's end")
            command = ["--config", str(stack.config), "events", guest.name, "--json", *ended]
            shown = CliRunner().invoke(cli, command)
            assert shown.exit_code == 0
            (document,) = json.loads(shown.stdout)
            assert document["host"] == client.settings.host
            assert document["domain"] == guest.name
            assert document["data"]["device"] == f"virtvault-{tag_of(handle.task_id)}-vda"
            assert document["data"]["offset"] == document["data"]["len"] > 0

            # Who follows has seen the same, each on a line of its own, and ends without a word.
            assert follower.stdout is not None
            seen = (json.loads(line) for line in iter(follower.stdout.readline, ""))
            assert next(e for e in seen if e["event"] == "BLOCK_JOB_COMPLETED") == document
            follower.send_signal(signal.SIGINT)
            _, errors = follower.communicate(timeout=20)
            assert (follower.returncode, errors) == (0, "")

        stack.redis.flush()
        guest.qmp("cont")
        until(lambda: list(client.events(guest.name, names=["RESUME"])), "life after a flush")
        stack.stop("control", signal.SIGTERM)
        assert "Traceback" not in stack.log("control")


def _epoch(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
