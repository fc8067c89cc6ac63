"""What Celery and Redis do to a long task is nothing to a backup: real processes, real kills."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import MIB
from tests.lab import DiskSpec, Guest, Hypervisor, Stack, assert_same
from virtvault import BackupResult, Client, Handle
from virtvault.errors import Cancelled, DomainBusy
from virtvault.models import Progress

# Bytes per second and disk: 48 MiB of data take some seconds, enough to kill things in.
SLOW = 8 * MIB


@pytest.fixture
def stack(workdir: Path, hypervisor: Hypervisor) -> Iterator[Stack]:
    with Stack(workdir, libvirt_uri=hypervisor.uri) as running:
        yield running


@pytest.fixture
def guest(stack: Stack, boot: Callable[..., Guest]) -> Guest:
    started = boot(DiskSpec("vda", "qcow2", 64 * MIB), DiskSpec("vdb", "raw", 16 * MIB))
    started.qemu_io("vda", "write -P 0x41 1M 48M")
    started.qemu_io("vdb", "write -P 0x42 0 4M")
    return started


def start_slow(client: Client, guest: Guest) -> Handle:
    """Begin a slow full and return when its jobs run."""
    handle = client.backup(guest.name, sync="full", speed=SLOW)
    wait_for(lambda: copying(handle.progress()))
    return handle


def copying(progress: Progress | None) -> bool:
    return progress is not None and progress.phase == "copying" and progress.done > 0


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def prove(stack: Stack, guest: Guest, handle: Handle, references: dict[str, Path]) -> BackupResult:
    """The task ends well, with one point, equal to the references."""
    result = handle.wait(90)
    assert isinstance(result, BackupResult)
    assert result.task_id == handle.task_id
    assert handle.state() == "SUCCESS"
    points = stack.repository / result.uuid
    assert [p.name for p in points.iterdir()] == [result.point]
    for target, reference in references.items():
        image = points / result.point / f"{target}.qcow2"
        assert_same(image, "qcow2", reference, guest.disks[target].format)
    assert jobs_of(guest) == []
    return result


def jobs_of(guest: Guest) -> list[str]:
    return [job["device"] for job in guest.qmp("query-block-jobs")]


@pytest.fixture
def references(guest: Guest, workdir: Path) -> dict[str, Path]:
    """The disks as they are now; the guest is paused and writes come from the test alone."""
    return {t: guest.reference(t, workdir / f"ref-{t}") for t in guest.disks}


def write_meanwhile(guest: Guest) -> None:
    """What the point must not have and the next one must."""
    guest.qemu_io("vda", "write -P 0x99 2M 1M")
    guest.qemu_io("vdb", "write -P 0x98 1M 1M")


def test_a_worker_killed_in_mid_copy_is_followed_by_one_that_finishes_the_same_point(
    stack: Stack, guest: Guest, references: dict[str, Path]
) -> None:
    client = stack.client()
    handle = start_slow(client, guest)
    write_meanwhile(guest)
    point = [p.name for p in next(stack.repository.glob("*-*-*")).iterdir()]
    stack.stop("worker", signal.SIGKILL)
    assert jobs_of(guest), "QEMU's jobs go on without a worker"
    stack.start("worker")
    result = prove(stack, guest, handle, references)
    assert point == [f"{result.point}.partial"]
    assert handle.task_id in stack.log("worker").split("taken up again")[0]


def test_sigterm_detaches_within_two_seconds_and_the_next_worker_finishes(
    stack: Stack, guest: Guest, references: dict[str, Path]
) -> None:
    client = stack.client()
    handle = start_slow(client, guest)
    took = stack.stop("worker", signal.SIGTERM)
    assert jobs_of(guest), "QEMU's jobs go on without a worker"
    assert handle.state() == "STARTED"
    # The bound is the promise of the design, not a speed: a worker that waited for its task
    # would need as long as the copy.
    print(f"SIGTERM to exit: {took:.2f} s")
    assert took < 2
    detached = stack.log("worker")
    assert "left to the next worker" in detached
    stack.start("worker")
    prove(stack, guest, handle, references)


def test_redis_restarted_in_mid_copy_costs_nothing(
    stack: Stack, guest: Guest, references: dict[str, Path]
) -> None:
    handle = start_slow(stack.client(), guest)
    stack.redis.kill()
    write_meanwhile(guest)
    wait_for(lambda: all(j["offset"] == j["len"] for j in guest.qmp("query-block-jobs")))
    stack.redis.start()
    prove(stack, guest, handle, references)


def test_redis_flushed_in_mid_copy_costs_nothing(
    stack: Stack, guest: Guest, references: dict[str, Path]
) -> None:
    client = stack.client()
    handle = start_slow(client, guest)
    stack.redis.flush()
    result = prove(stack, guest, handle, references)
    wait_for(lambda: [p.id for p in client.points()] == [result.point])


def test_redis_frozen_for_the_whole_copy_delays_nothing(
    stack: Stack, guest: Guest, references: dict[str, Path]
) -> None:
    handle = start_slow(stack.client(), guest)
    stack.redis.freeze()
    try:
        # Published while Redis stands still.
        wait_for(lambda: not list(stack.repository.glob("*/*.partial")))
    finally:
        stack.redis.thaw()
    prove(stack, guest, handle, references)


def test_a_message_lost_before_it_was_taken_is_sent_again(
    stack: Stack, guest: Guest, references: dict[str, Path]
) -> None:
    stack.stop("worker", signal.SIGTERM)
    client = stack.client()
    handle = client.backup(guest.name)
    assert stack.redis.client().delete(f"hv.{handle.host}") == 1
    stack.start("worker")
    result = handle.wait(90)
    assert isinstance(result, BackupResult)
    prove(stack, guest, handle, references)
    assert handle.task_id in stack.log("central")


def test_a_task_delivered_twice_runs_once(
    stack: Stack, guest: Guest, references: dict[str, Path]
) -> None:
    client = stack.client()
    handle = start_slow(client, guest)
    queue = f"hv.{handle.host}"
    request = {"domain": guest.domain.UUIDString(), "sync": "full", "speed": SLOW}
    client.app.send_task("virtvault.backup", [request], task_id=handle.task_id, queue=queue)
    wait_for(lambda: "another delivery is at work" in stack.log("worker"))
    result = prove(stack, guest, handle, references)
    client.app.send_task("virtvault.backup", [request], task_id=handle.task_id, queue=queue)
    wait_for(lambda: stack.log("worker").count(f"{handle.task_id}] received") == 3)
    assert handle.result() == result


def test_a_second_backup_of_a_busy_domain_is_refused_and_changes_nothing(
    stack: Stack, guest: Guest, references: dict[str, Path]
) -> None:
    client = stack.client()
    handle = start_slow(client, guest)
    with pytest.raises(DomainBusy, match=handle.task_id):
        client.backup(guest.name).wait(30)
    prove(stack, guest, handle, references)


def test_cancel_leaves_nothing_and_loses_nothing(stack: Stack, guest: Guest) -> None:
    client = stack.client()
    first = client.backup(guest.name).wait(60)
    assert isinstance(first, BackupResult)
    guest.qemu_io("vda", "write -P 0x77 3M 32M")
    handle = client.backup(guest.name, speed=SLOW)
    wait_for(lambda: copying(handle.progress()))
    client.pause(handle.task_id)
    wait_for(
        lambda: {j["status"] for j in guest.qmp("query-block-jobs")} <= {"paused", "concluded"}
    )
    client.cancel(handle.task_id)
    with pytest.raises(Cancelled):
        handle.wait(30)
    assert jobs_of(guest) == []
    assert [p.name for p in (stack.repository / first.uuid).iterdir()] == [first.point]
    reference = guest.reference("vda", stack.directory / "after-cancel")
    second = client.backup(guest.name).wait(60)
    assert isinstance(second, BackupResult)
    assert {d.sync for d in second.disks} == {"incremental"}
    image = stack.repository / second.uuid / second.point / "vda.qcow2"
    assert_same(image, "qcow2", reference, "qcow2")
    wait_for(lambda: len(client.runs(domain=first.uuid)) == 3, 60)
    told = [(run.state, run.domain, run.point) for run in client.runs(domain=first.uuid)]
    assert told[0] == ("complete", guest.name, second.point)
    assert told[1][:2] == ("cancelled", guest.name)


def test_points_reach_the_catalog_after_central_was_away(stack: Stack, guest: Guest) -> None:
    client = stack.client()
    stack.stop("central", signal.SIGKILL)
    stack.redis.flush()
    stack.wait_alive()
    result = client.backup(guest.name).wait(60)
    assert isinstance(result, BackupResult)
    stack.redis.flush()  # and with it the message that was to record the point
    stack.wait_alive()
    stack.start("central")
    wait_for(lambda: "ready." in stack.log("central").rpartition("central@")[2], 30)
    wait_for(lambda: [p.id for p in client.points()] == [result.point], 60)
