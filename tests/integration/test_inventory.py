"""What hypervisors have: told as it changes, found in one look, through migration and loss."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest
import redis

import workers.hypervisor
from tasks.catalog import Catalog
from tasks.inventory import Teller
from tasks.known_hosts import put_back
from tasks.spool import Spool
from tests.integration.conftest import MIB
from tests.integration.scenes import until
from tests.integration.test_events import Libvirtd
from tests.lab import DiskSpec, Guest, Hypervisor, RedisServer, Stack, assert_same
from tests.lab.monitor import Monitor
from tests.lab.second_hypervisor import SecondHypervisor
from virtvault import Client, queues, schemas
from virtvault.celery_app import new_app
from virtvault.errors import DomainBusy, InvalidRequest, NotReachable
from virtvault.inventory import Inventories
from virtvault.models import BackupResult, DomainInfo, Inventory, RepositoryInfo
from virtvault.settings import Settings
from workers import labels

Boot = Callable[..., Guest]
USERS = Path(__file__).parents[2] / "deploy" / "redis" / "users.acl.example"
AT, LATER = "2026-01-31T04:05:06.123Z", "2026-01-31T04:05:07.000Z"
VDA = DiskSpec("vda", "qcow2", 64 * MIB)


@pytest.fixture
def second(workdir: Path) -> Iterator[SecondHypervisor]:
    with SecondHypervisor(workdir / "second") as started:
        yield started


@contextmanager
def migrated(guest: Guest, second: SecondHypervisor) -> Iterator[None]:
    """The guest lives on the second hypervisor; then it comes back. Both keep its definition."""
    flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNSAFE | libvirt.VIR_MIGRATE_PERSIST_DEST
    parameters = {libvirt.VIR_MIGRATE_PARAM_URI: second.channel}
    here = guest.domain, guest._monitor
    there = second.connect()
    log = second.directory / "private-var-log-libvirt" / "qemu" / f"{guest.name}.log"
    try:
        guest.domain = guest.domain.migrate3(there, parameters, flags)
        guest._monitor = Monitor(guest.domain, log)
        yield
        guest.domain.migrate3(here[0].connect(), parameters, flags)
    finally:
        guest.domain, guest._monitor = here
        for domain in there.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            domain.destroy()
        there.close()


def test_a_chain_follows_its_domain_to_another_hypervisor_and_back(
    hypervisor: Hypervisor, second: SecondHypervisor, boot: Boot, workdir: Path
) -> None:
    guest = boot(VDA)
    taken: list[BackupResult] = []

    def back_up(client: Client, host: str) -> BackupResult:
        """A point made on that host, which is what the disk held, and has the last as parent."""
        until(lambda: client.find_domain(guest.name).host == host, f"{guest.name} on {host}")
        guest.suspend()
        reference = guest.reference("vda", workdir / f"reference-{len(taken)}")
        handle = client.backup(guest.name)
        assert handle.host == host
        done = handle.wait(60)
        assert isinstance(done, BackupResult)
        (disk,) = done.disks
        assert disk.sync == ("incremental" if taken else "full"), disk.reason
        assert (done.host, disk.parent) == (host, taken[-1].point if taken else "")
        taken.append(done)
        image = stack.repository / done.uuid / done.point / "vda.qcow2"
        assert_same(image, "qcow2", reference, "qcow2")
        return done

    with (
        Stack(workdir, libvirt_uri=hypervisor.uri) as stack,
        Stack(workdir / f"{workdir.name}-2", beside=stack, libvirt_uri=second.uri) as other,
    ):
        client = stack.client()
        guest.qemu_io("vda", "write -P 1 0 8M")
        back_up(client, stack.host)
        assert client.label(guest.name, {"tier": "prod"}).labels == {"tier": "prod"}
        guest.qemu_io("vda", "write -P 2 4M 1M")
        guest.resume()
        with migrated(guest, second):
            back_up(client, other.host)
            guest.qemu_io("vda", "write -P 3 5M 1M")
            guest.qemu_io("vda", "write -z 0 1M")
            back_up(client, other.host)
            assert client.find_domain(guest.name).labels == {"tier": "prod"}
            guest.qemu_io("vda", "write -P 4 20M 1M")
            assert guest.is_paused()
        # QEMU reads its images as they were when it was started to be migrated to.
        until(lambda: client.find_domain(guest.name).host == stack.host, "the way back")
        with pytest.raises(DomainBusy, match="came here paused") as busy:
            client.backup(guest.name).wait(60)
        assert f"virsh resume {guest.name}" in busy.value.mend
        guest.resume()
        back_up(client, stack.host)
        assert max(point.disks[0].transferred for point in taken[1:]) < 4 * MIB

        guest.power_off()
        until(lambda: client.find_domain(guest.name).state == "shut off", "the end")
        places = {d.host: d for d in client.domains() if d.name == guest.name}
        assert {d.state for d in places.values()} == {"shut off"}
        assert places[stack.host].active > places[other.host].active > ""
        assert client.find_domain(guest.name).host == stack.host
        lose(stack, client)
        with pytest.raises(NotReachable, match=f"on hypervisor {stack.host}: .* last heard of"):
            client.backup(guest.name)
        assert client.redis.llen(queues.host_queue(other.host)) == 0
        assert client.redis.llen(queues.host_queue(stack.host)) == 0
        states = {d.host: d.state for d in client.domains() if d.name == guest.name}
        assert states == {stack.host: "unreachable", other.host: "shut off"}
        assert client.find_domain(f"{other.host}/{guest.name}").host == other.host
        gone = next(host for host in client.hosts() if host.host == stack.host)
        assert not gone.alive
        assert gone.seen
        assert gone.storage[0].id
        assert gone.storage[0].free > 0
        assert gone.libvirt
        assert gone.domains
        # Its worker is back: nothing else is needed.
        stack.start("worker")
        stack.wait_alive()
        assert client.find_domain(guest.name).host == stack.host


def lose(stack: Stack, client: Client) -> None:
    """A hypervisor's worker is killed, and the heartbeat's time passes."""
    stack.stop("worker")
    assert 0 < int(client.redis.ttl(queues.host_key(stack.host))) <= 15
    client.redis.delete(queues.host_key(stack.host))


# -- telling ---------------------------------------------------------------------------------------


class Told:
    """A teller whose rounds the test takes, and what Redis has of it.

    It tells as the user of a hypervisor, and is read as the user of other services.
    """

    def __init__(self, settings: Settings, client: redis.Redis) -> None:
        self.app = new_app(settings)
        self.client = client
        self.own, self.service = (
            redis.Redis.from_url(settings.redis_url, username=name, password=f"CHANGE-{name}")
            for name in ("lab", "service")
        )
        self.spool = Path(settings.state_dir, "spool")
        spool = Spool(self.app, settings.state_dir, self.own)
        self.teller = Teller(settings, self.own, spool, threading.Event())
        self.hosts = Inventories(self.service)

    def close(self) -> None:
        self.app.close()
        self.own.close()
        self.service.close()

    def round(self) -> Inventory:
        """Look, tell, and read as others do."""
        self.teller.look()
        self.teller.beat()
        found = self.hosts.look()["lab"].inventory
        assert found is not None
        one = self.hosts.one("lab")
        assert one is not None
        assert (one.alive, one.inventory) == (True, found)
        return found

    def after(self, change: Callable[[], object]) -> Inventory:
        """A round once libvirt has told of a change."""
        woken = self.teller._stock._domains.woken
        woken.clear()
        change()
        assert woken.wait(20)
        return self.round()


@pytest.fixture
def libvirtd(workdir: Path, hypervisor: Hypervisor) -> Iterator[Libvirtd]:
    # The machine's own is asked for only so that libvirt's directories are there to mount over.
    own = Libvirtd(workdir / "own")
    try:
        own.start()
        yield own
    finally:
        if own.answers():
            for domain in libvirt.open(own.uri).listAllDomains(
                libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
            ):
                domain.destroy()
        own.stop()


@pytest.fixture
def told(workdir: Path, libvirtd: Libvirtd, settings: Settings) -> Iterator[Callable[[], Told]]:
    with RedisServer(workdir / "redis") as server, server.client() as client:
        for line in USERS.read_text().replace("hv1", "lab").splitlines():
            _, user, *rules = re.findall(r"\([^)]*\)|\S+", line)
            if user != "default":
                client.execute_command("ACL", "SETUSER", user, *rules)
        given = replace(settings, libvirt_uri=libvirtd.uri, broker_url=server.url)
        made: list[Told] = []

        def make() -> Told:
            made.append(Told(given, client))
            return made[-1]

        yield make
        for one in made:
            one.close()


def define(libvirtd: Libvirtd, name: str, metadata: str = "") -> libvirt.virDomain:
    """A domain with two disks and a CD drive."""
    disks = "".join(
        f"<disk type='file' device='{device}'><driver name='qemu' type='raw'/>{source}"
        f"<target dev='{target}' bus='sata'/></disk>"
        for target, device, source in (
            ("sda", "disk", "<source file='/a'/>"),
            ("sdb", "disk", "<source file='/b'/>"),
            ("sdc", "cdrom", ""),
        )
    )
    return libvirt.open(libvirtd.uri).defineXML(
        f"<domain type='qemu'><name>{name}</name>{metadata}<memory unit='MiB'>64</memory>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os>"
        f"<devices>{disks}<controller type='usb' model='none'/></devices></domain>"
    )


def test_what_changes_is_told_and_what_does_not_costs_no_xml(
    libvirtd: Libvirtd, told: Callable[[], Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = told()
    read: list[str] = []
    describe = workers.hypervisor.Hypervisor.describe
    monkeypatch.setattr(
        workers.hypervisor.Hypervisor,
        "describe",
        lambda self, uuid: read.append(uuid) or describe(self, uuid),
    )
    define(libvirtd, "db1")
    # Libvirt takes it, and no other parser does.
    define(libvirtd, "db2", "<metadata><nobody:declared/></metadata>")
    first = here.round()
    assert [(d.name, d.state, d.targets, d.transient) for d in first.domains] == [
        ("db1", "shut off", ("sda", "sdb"), False),
        ("db2", "shut off", ("sda", "sdb"), False),
    ]
    assert (first.default, first.trouble, first.versions["libvirt"] > "") == ("main", "", True)
    assert len(read) == 2
    assert here.round() == first
    assert len(read) == 2

    db1, db2 = (domain.uuid for domain in first.domains)
    hypervisor = here.teller._stock._hypervisor
    labelled = here.after(lambda: labels.change(hypervisor, db1, {"tier": "prod", "team": "a"}))
    assert [d.labels for d in labelled.domains] == [{"tier": "prod", "team": "a"}, {}]
    assert read[2:] == [db1]
    assert labelled.at > first.at
    running = here.after(lambda: libvirtd.domain().name())
    (transient,) = [d for d in running.domains if d.transient]
    assert (transient.state, transient.targets) == ("paused", ())
    # It is nobody's: a boot test of ours.
    libvirt.open(libvirtd.uri).lookupByUUIDString(db2).rename("virtvault-verify-0123abcd")
    assert [d.uuid for d in here.round().domains if not d.transient] == [db1]
    ended = here.after(libvirt.open(libvirtd.uri).lookupByName(transient.name).destroy)
    assert [d.uuid for d in ended.domains] == [db1]
    stream = here.client.xrange(queues.INVENTORY_STREAM)
    ats = [fields[b"at"].decode() for _, fields in stream]
    assert ats == sorted(set(ats))
    assert (ats[0], ats[-1]) == (first.at, ended.at)

    for wrong in ({"a b": "x"}, {"a": "x\ny"}, {"xmlns": "x"}, {"a": "x" * 301}):
        with pytest.raises(InvalidRequest, match=r"a name has|a value has"):
            labels.change(hypervisor, db1, {"ok": "1", **wrong})
    with pytest.raises(InvalidRequest, match="at most 64"):
        labels.change(hypervisor, db1, {f"k{n}": "x" for n in range(64)})
    removed = here.after(lambda: labels.change(hypervisor, db1, {"team": "", "none": ""}))
    assert removed.domains[0].labels == {"tier": "prod"}


def test_what_was_known_holds_while_libvirt_is_away_through_a_restart_of_the_worker(
    libvirtd: Libvirtd, told: Callable[[], Told]
) -> None:
    here = told()
    domain = libvirtd.domain()
    persistent = define(libvirtd, "db1")
    before = here.round()
    assert {d.name: d.state for d in before.domains} == {
        "db1": "shut off",
        domain.name(): "paused",
    }
    libvirtd.stop()
    for one in (here, told()):
        away = one.round()
        assert "does not answer" in away.trouble
        assert (away.domains, away.versions) == (before.domains, before.versions)
        (listed, *_) = one.hosts.look()["lab"].domains()
        assert listed.state == "unknown"
    libvirtd.start()
    back = one.round()
    assert (back.trouble, [d.name for d in back.domains]) == ("", [d.name for d in before.domains])
    # Events are heard again.
    libvirtd.again(domain).destroy()
    until(lambda: one.teller._stock._domains.woken.is_set(), "the event")
    assert [d.name for d in one.round().domains] == ["db1"]
    assert persistent.UUIDString()


def test_a_domain_that_ended_is_told_with_when_it_ran_last(
    libvirtd: Libvirtd, told: Callable[[], Told]
) -> None:
    here = told()
    domain = libvirtd.domain()
    libvirt.open(libvirtd.uri).defineXML(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    running = here.round()
    assert [(d.state, d.active) for d in running.domains] == [("paused", "")]
    libvirtd.again(domain).destroy()
    # By a worker that was not there then: it ran at least until that was told.
    later = told().round()
    assert [(d.state, d.active) for d in later.domains] == [("shut off", running.at)]
    assert told().round() == later


def test_a_redis_that_forgot_is_told_again_and_central_gets_the_newest_alone(
    libvirtd: Libvirtd, told: Callable[[], Told]
) -> None:
    here = told()
    for number in range(3):
        define(libvirtd, f"db{number}")
        newest = here.round()
        here.teller.record()
        here.teller.record()
    key = queues.inventory_key("lab")
    # No central has been there.
    (path,) = here.spool.glob("record-inventory-*")
    assert json.loads(path.read_text())["inventory"]["at"] == newest.at
    assert here.client.llen(queues.CENTRAL) == 3
    here.client.flushall()
    here.teller.beat()
    assert here.hosts.look()["lab"].inventory == newest
    older = json.dumps(schemas.dump(replace(newest, at="2026-01-01T00:00:00.000Z", domains=())))
    here.client.set(key, older)
    here.teller.beat()
    assert here.hosts.look()["lab"].inventory == newest
    assert 0 < here.client.ttl(queues.host_key("lab")) <= 15
    assert here.client.ttl(key) == -1
    # Nothing has changed: nothing is written but the sign of life.
    written = here.client.xlen(queues.INVENTORY_STREAM)
    here.round()
    assert here.client.xlen(queues.INVENTORY_STREAM) == written
    # And with central away for long nothing is piled up.
    here.client.lpush(queues.CENTRAL, *["x"] * 1000)
    define(libvirtd, "one-more")
    here.round()
    here.teller.record()
    assert here.client.llen(queues.CENTRAL) == 1000
    (path,) = here.spool.glob("record-inventory-*")
    assert "one-more" in path.read_text()


# -- reading ---------------------------------------------------------------------------------------


def fleet(client: redis.Redis, hosts: int, domains: int) -> None:
    """As that many hypervisors tell; the last of them is gone."""
    for number in range(hosts):
        host = f"hv{number:03}"
        listed = tuple(
            DomainInfo(f"vm-{number}-{n}", str(uuid.UUID(int=number * 1000 + n)), host, "running")
            for n in range(domains)
        )
        told = Inventory(host, AT, {"libvirt": "9.0.0"}, (RepositoryInfo("main"),), listed)
        client.hset(queues.HOSTS_KEY, host, AT)
        client.set(queues.inventory_key(host), json.dumps(schemas.dump(told)))
        if number < hosts - 1:
            sign = {"host": host, "seen": AT, "at": AT}
            client.set(queues.host_key(host), json.dumps(sign), ex=60)


def commands(client: redis.Redis) -> dict[str, int]:
    """How often each command was called since the last time."""
    stats: dict[str, dict[str, int]] = client.info("commandstats")
    client.config_resetstat()
    found = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}
    return {k: v for k, v in found.items() if k in ("get", "mget", "hgetall", "hget", "keys")}


def test_a_fleet_is_read_in_two_round_trips_and_again_only_what_changed(workdir: Path) -> None:
    with RedisServer(workdir / "redis") as server, server.client() as seen:
        fleet(seen, 60, 20)
        commands(seen)
        with Client(Settings(broker_url=server.url, control_timeout=1)) as client:
            assert client.find_domain("vm-7-13").host == "hv007"
            assert commands(seen) == {"hgetall": 1, "mget": 1}
            assert client.find_domain(str(uuid.UUID(int=8014))).name == "vm-8-14"
            assert commands(seen) == {"hgetall": 1, "mget": 2}
            with pytest.raises(NotReachable, match=r"on hypervisor hv059: .* last heard of on"):
                client.find_domain("vm-59-1")
            commands(seen)
            hosts = client.hosts()
            assert commands(seen) == {"hgetall": 1, "mget": 2}
            assert [(h.host, h.domains) for h in hosts if not h.alive] == [("hv059", 20)]
            domains = client.domains()
            assert len(domains) == 1200
            assert {d.state for d in domains if d.host == "hv059"} == {"unreachable"}
            # One moved.
            moved = client.inventories.look()["hv007"].inventory
            assert moved is not None
            kept = replace(moved, at=LATER, domains=moved.domains[:13])
            seen.set(queues.inventory_key("hv007"), json.dumps(schemas.dump(kept)))
            sign = {"host": "hv007", "seen": LATER, "at": LATER}
            seen.set(queues.host_key("hv007"), json.dumps(sign), ex=60)
            assert client.hosts()[7].domains == 13
            # One that nobody can read hides no other.
            seen.set(queues.inventory_key("hv059"), "{}")
            assert client.find_domain("vm-7-12").host == "hv007"
            assert client.hosts()[59].domains == 0


def test_a_gone_hypervisor_is_put_back_after_a_flush(workdir: Path) -> None:
    catalog = Catalog(f"sqlite:///{workdir}/catalog.sqlite")
    with RedisServer(workdir / "redis") as server, server.client() as seen:
        fleet(seen, 3, 2)
        for said in Inventories(seen).look().values():
            assert said.inventory is not None
            catalog.record({"inventory": schemas.dump(said.inventory)})
        seen.flushall()
        newer = json.dumps({"host": "hv001", "at": LATER})
        seen.set(queues.inventory_key("hv001"), newer)
        put_back(catalog, seen)
        with Client(Settings(broker_url=server.url)) as client:
            assert [(h.host, h.alive) for h in client.hosts()] == [
                (f"hv00{number}", False) for number in range(3)
            ]
            with pytest.raises(NotReachable, match="on hypervisor hv002"):
                client.find_domain("vm-2-1")
        assert seen.get(queues.inventory_key("hv001")) == newer.encode()
        # Once: what an operator has removed since then stays away.
        seen.delete(queues.HOSTS_KEY)
        put_back(catalog, seen)
        assert not seen.exists(queues.HOSTS_KEY)
