"""What hypervisors have: told as it changes, found in one look, through migration and loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest

from tests.integration.conftest import MIB
from tests.integration.scenes import until
from tests.lab import DiskSpec, Guest, Hypervisor, Stack, assert_same
from tests.lab.monitor import Monitor
from tests.lab.second_hypervisor import SecondHypervisor
from virtvault import Client, queues
from virtvault.errors import DomainBusy, NotReachable
from virtvault.models import BackupResult

Boot = Callable[..., Guest]
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
    guest.resume()
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
        guest.resume()
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
        with migrated(guest, second):
            back_up(client, other.host)
            guest.qemu_io("vda", "write -P 3 5M 1M")
            guest.qemu_io("vda", "write -z 0 1M")
            back_up(client, other.host)
            assert client.find_domain(guest.name).labels == {"tier": "prod"}
            guest.qemu_io("vda", "write -P 4 20M 1M")
            guest.suspend()
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
