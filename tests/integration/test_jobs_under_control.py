"""jobs, pause, resume, speed and cancel, through the real roles while every slot is busy."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.integration.conftest import MIB
from tests.integration.scenes import (
    VDA,
    Boot,
    Running,
    TakePoints,
    assert_nothing_remains,
    bitmaps,
    block_jobs,
    image_of,
    nodes,
    snapshot,
    syncs,
    until,
)
from tests.integration.test_flower import AUTH, Web, running_flower
from tests.lab import DiskSpec, Guest, Hypervisor, Stack, assert_same
from virtvault import BackupResult, Client, Handle
from virtvault.errors import Cancelled, InvalidRequest, MonitorError, UnknownTask
from virtvault.models import JobInfo, RestoreResult
from virtvault.settings import load
from workers import job_control, job_listing
from workers.engine import Engine, tag_of
from workers.journal import Run

TWO_DISKS = (DiskSpec("vda", "qcow2", 64 * MIB), DiskSpec("vdb", "raw", 16 * MIB))
# The requirement: from the call to the effect in QEMU, while every backup slot is busy.
AT_ONCE = 1.0


@pytest.fixture
def stack(workdir: Path, hypervisor: Hypervisor) -> Iterator[Stack]:
    """With one slot: a single backup keeps all of them busy."""
    with Stack(workdir, libvirt_uri=hypervisor.uri, slots=1) as running:
        yield running


@pytest.fixture
def engine_of_stack(stack: Stack) -> Engine:
    return Engine.of(load(stack.config, {}))


@pytest.fixture
def guest(boot: Boot) -> Guest:
    return with_content(boot(*TWO_DISKS))


def with_content(guest: Guest) -> Guest:
    guest.qemu_io("vda", "write -P 0x41 1M 48M")
    guest.qemu_io("vdb", "write -P 0x42 0 12M")
    return guest


def crawl(client: Client, guest: Guest, **request: Any) -> Handle:
    """A backup at 1 MiB/s and disk, with its jobs running."""
    handle = client.backup(guest.name, **{"sync": "full", "speed": MIB, **request})
    until(lambda: copying(handle), "the jobs")
    return handle


def copying(handle: Handle) -> bool:
    progress = handle.progress()
    return progress is not None and progress.phase == "copying" and progress.done > 0


def at_once(call: Callable[[], object], effect: Callable[[], bool], what: str) -> None:
    """``call``, whose effect is seen in QEMU within a second of its beginning."""
    began = time.monotonic()
    call()
    until(effect, what)
    took = time.monotonic() - began
    print(f"{what}: {took:.2f} s")
    assert took < AT_ONCE


def assert_cancelled(handle: Handle) -> None:
    with pytest.raises(Cancelled, match=f"Task {handle.task_id} was cancelled"):
        handle.wait(20)
    assert handle.state() == "REVOKED"


def ours(client: Client, handle: Handle) -> list[JobInfo]:
    return [job for job in client.jobs() if job.task_id == handle.task_id]


def test_control_takes_effect_within_a_second_while_all_slots_are_busy(
    stack: Stack, engine_of_stack: Engine, guest: Guest
) -> None:
    client = stack.client()
    first = client.backup(guest.name).wait(60)
    assert isinstance(first, BackupResult)
    parent = set(bitmaps(guest))
    guest.qemu_io("vda", "write -P 0x77 3M 32M")
    guest.qemu_io("vdb", "write -P 0x78 1M 8M")
    handle = crawl(client, guest, sync="incremental")
    guest.qemu_io("vda", "write -P 0x79 40M 1M")

    def jobs() -> list[dict[str, Any]]:
        return list(block_jobs(guest).values())

    def shown(field: str) -> set[Any]:
        return {getattr(job, field) for job in ours(client, handle)}

    task = handle.task_id
    at_once(
        lambda: client.pause(task), lambda: all(j["status"] == "paused" for j in jobs()), "pause"
    )
    assert (len(jobs()), shown("status")) == (2, {"paused"})
    assert "were already paused" in client.pause(task)
    at_once(
        lambda: client.set_speed(task, 2 * MIB),
        lambda: all(j["speed"] == 2 * MIB for j in jobs()),
        "speed",
    )
    assert shown("speed") == {2 * MIB}
    at_once(
        lambda: client.resume(task), lambda: all(j["status"] == "running" for j in jobs()), "resume"
    )
    assert shown("status") == {"running"}
    assert not parent - set(bitmaps(guest)), "the parent's bitmaps are there all the time"
    at_once(lambda: client.cancel(task), lambda: not jobs(), "cancel")
    assert_cancelled(handle)
    assert client.jobs(domain=guest.name) == []
    assert set(bitmaps(guest)) == parent
    assert_nothing_remains(engine_of_stack, guest)

    references = {t: guest.reference(t, stack.directory / f"after-{t}") for t in guest.disks}
    second = client.backup(guest.name).wait(60)
    assert isinstance(second, BackupResult)
    assert syncs(second) == {"vda": "incremental", "vdb": "incremental"}
    for target, reference in references.items():
        image = image_of(engine_of_stack, second, target)
        assert_same(image, "qcow2", reference, guest.disks[target].format)


def test_revoke_does_what_cancel_does(stack: Stack, engine_of_stack: Engine, guest: Guest) -> None:
    client = stack.client()
    control = client.app.control
    ways: dict[str, Callable[[str], object]] = {
        "cancel": client.cancel,
        "revoke": control.revoke,
        "terminate": lambda task_id: control.revoke(task_id, terminate=True),
    }
    for way, call in ways.items():
        handle = crawl(client, guest)
        client.pause(handle.task_id)
        at_once(lambda: call(handle.task_id), lambda: not block_jobs(guest), way)  # noqa: B023
        assert_cancelled(handle)
        assert_nothing_remains(engine_of_stack, guest)
        # One that has ended takes no more of them, and nothing is left of the attempt.
        control.revoke(handle.task_id, terminate=True, reply=True)
        with pytest.raises(UnknownTask, match="has ended"):
            client.cancel(handle.task_id)
    control.revoke(f"{uuid.uuid4()}", reply=True)
    assert_nothing_remains(engine_of_stack, guest)
    for role in stack.roles:
        assert "Traceback" not in stack.log(role)


@pytest.mark.parametrize("way", ["cancel", "revoke", "revoke unheard by its hypervisor"])
def test_a_task_cancelled_in_its_queue_never_runs(
    stack: Stack, engine_of_stack: Engine, guest: Guest, boot: Boot, way: str
) -> None:
    client = stack.client()
    other = boot(VDA)
    busy = crawl(client, guest)
    handle = client.backup(other.name)
    if way == "cancel":
        client.cancel(handle.task_id)
    elif way == "revoke":
        client.app.control.revoke(handle.task_id, terminate=True)
    else:
        central = f"central@{handle.host}"
        client.app.control.revoke(handle.task_id, destination=[central])
    # Who waits for it hears at once, not when a slot is free.
    with pytest.raises(Cancelled, match="before it began; nothing was touched"):
        handle.wait(5)
    assert handle.state() == "REVOKED"
    # A restart of its worker does not bring it back.
    stack.stop("worker", signal.SIGKILL)
    stack.start("worker")
    until(lambda: "taken up again" in stack.log("worker"), "the busy task's next worker", 60)
    client.cancel(busy.task_id)
    assert_cancelled(busy)
    queue = f"hv.{handle.host}"
    until(lambda: not stack.redis.client().llen(queue), "the message to be taken")
    until(lambda: not stack.redis.client().smembers("virtvault:runs:open"), "closed records")
    assert handle.state() == "REVOKED"
    assert not (stack.repository / other.domain.UUIDString()).exists()
    assert_nothing_remains(engine_of_stack, other)
    # The domain can be backed up as if nothing had been.
    assert isinstance(client.backup(other.name).wait(60), BackupResult)
    assert "published again" not in stack.log("central")


def test_flowers_terminate_button_cancels(
    stack: Stack, engine_of_stack: Engine, guest: Guest, tmp_path: Path
) -> None:
    client = stack.client()
    with running_flower(tmp_path, stack.redis.url) as (_, web):
        handle = crawl(client, guest)
        until(lambda: row(web, handle).get("state") == "STARTED", "Flower's row")
        button = urllib.request.Request(
            f"{web.address}/api/task/revoke/{handle.task_id}?terminate=true", method="POST"
        )
        button.add_header("Authorization", f"Basic {b64encode(AUTH.encode()).decode()}")

        def press() -> None:
            with urllib.request.urlopen(button, timeout=5) as answer:
                assert answer.status == 200

        at_once(press, lambda: not block_jobs(guest), "Flower's button")
        assert_cancelled(handle)
        until(lambda: row(web, handle)["state"] == "REVOKED", "REVOKED in Flower")
        assert row(web, handle)["domain"] == guest.name
        assert_nothing_remains(engine_of_stack, guest)
    assert "Traceback" not in stack.log("worker") + stack.log("control")


def row(web: Web, handle: Handle) -> dict[str, Any]:
    return next((r for r in web.rows() if r["uuid"] == handle.task_id), {})


def test_one_job_is_steered_alone_but_cancels_its_whole_task(
    stack: Stack, engine_of_stack: Engine, guest: Guest
) -> None:
    client = stack.client()
    handle = crawl(client, guest)
    vda, vdb = sorted(job.job for job in ours(client, handle))
    assert "is paused" in client.pause(vdb)
    until(lambda: block_jobs(guest)[vdb]["status"] == "paused", "the pause")
    assert block_jobs(guest)[vda]["status"] == "running"
    client.set_speed(vdb, 0)
    assert [block_jobs(guest)[job]["speed"] for job in (vda, vdb)] == [MIB, 0]
    client.resume(vdb)
    until(lambda: block_jobs(guest)[vdb]["status"] == "concluded", "the end of one disk")
    with pytest.raises(InvalidRequest, match=f"{vdb} of domain {guest.name} has nothing left"):
        client.pause(vdb)
    assert handle.task_id in client.cancel(vda)
    assert_cancelled(handle)
    assert_nothing_remains(engine_of_stack, guest)
    with pytest.raises(UnknownTask, match=f"No task or block job {vda} is known"):
        client.resume(vda)


def test_a_job_id_that_two_domains_have_is_asked_back(
    stack: Stack, boot: Boot, workdir: Path
) -> None:
    client = stack.client()
    guests = [boot(VDA), boot(VDA)]
    name = f"mine-{uuid.uuid4().hex[:8]}"
    for guest in guests:
        create(guest, name, workdir / "missing" / "x")
        until(lambda: jobs_of(guest)[name]["status"] == "concluded", "the end")  # noqa: B023
    with pytest.raises(UnknownTask, match="runs on 2 domains") as caught:
        client.pause(name)
    assert all(f"/{guest.name}" in caught.value.message for guest in guests)
    for domain in (guests[1].name, f"{client.hosts()[0].host}/{guests[1].name}"):
        with pytest.raises(InvalidRequest, match="No such file"):
            client.pause(name, domain=domain)
    assert {job.domain for job in client.jobs(domain=guests[0].name)} == {guests[0].name}


def test_a_restore_is_controlled_like_a_backup(stack: Stack, guest: Guest) -> None:
    client = stack.client()
    point = client.backup(guest.name).wait(60)
    assert isinstance(point, BackupResult)
    handle = client.restore(point.point, to="slowly", speed=MIB)
    until(lambda: copying(handle), "the jobs")

    def statuses() -> set[str]:
        return {job.status for job in ours(client, handle)}

    client.pause(handle.task_id)
    until(lambda: statuses() == {"paused"}, "the pause")
    client.set_speed(handle.task_id, 0)
    client.resume(handle.task_id)
    assert isinstance(handle.wait(60), RestoreResult)

    handle = client.restore(point.point, to="never", speed=MIB)
    until(lambda: copying(handle), "the jobs")
    client.cancel(handle.task_id)
    assert_cancelled(handle)
    assert not (stack.directory / "never").exists()


# -- the engine alone -----------------------------------------------------------------------------


def create(guest: Guest, job: str, path: Path) -> None:
    """A job that is no block job: QEMU makes a file."""
    options = {"driver": "file", "filename": str(path), "size": MIB}
    guest.qmp("blockdev-create", **{"job-id": job, "options": options})


def jobs_of(guest: Guest) -> dict[str, dict[str, Any]]:
    return {job["id"]: job for job in guest.qmp("query-jobs")}


def listed(engine: Engine, guest: Guest) -> dict[str, JobInfo]:
    return {job.job: job for job in job_listing.block_jobs(engine) if job.domain == guest.name}


def test_a_job_of_libvirts_is_steered_but_cancelled_only_where_that_is_said(
    boot: Boot, engine: Engine, workdir: Path
) -> None:
    guest = boot(VDA)
    domain, uuid_ = guest.domain, guest.domain.UUIDString()
    snapshot(guest, "vda", workdir / "guest" / "over.qcow2")
    guest.qemu_io("vda", "write -P 7 0 32M")

    def commit(bandwidth: int) -> str:
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
        domain.blockCommit("vda", None, None, bandwidth, flags)
        return next(iter(block_jobs(guest)))

    job = commit(1)
    shown = listed(engine, guest)[job]
    assert (shown.type, shown.status, shown.task_id) == ("commit", "running", "")
    assert (shown.speed, shown.uuid) == (MIB, uuid_)
    job_control.pause(engine, job, uuid_)
    until(lambda: listed(engine, guest)[job].status == "paused", "the pause")
    assert "limited to 2.0 MiB/s" in job_control.set_speed(engine, 2 * MIB, job, uuid_)
    assert listed(engine, guest)[job].speed == 2 * MIB
    with pytest.raises(InvalidRequest, match="libvirt's blockcommit of disk vda") as refused:
        job_control.cancel_job(engine, job, uuid_)
    assert "The overlay stays in use" in refused.value.mend
    assert "--yes" in refused.value.mend
    assert job in block_jobs(guest)
    job_control.resume(engine, job, uuid_)
    until(lambda: listed(engine, guest)[job].status == "running", "the resume")
    job_control.pause(engine, job, uuid_)
    job_control.cancel_job(engine, job, uuid_, others=True)
    until(lambda: not block_jobs(guest), "the end of the commit")
    # libvirt has heard of it, and can begin again.
    until(lambda: not domain.blockJobInfo("vda"), "libvirt to hear of it")
    again = commit(0)
    until(lambda: listed(engine, guest)[again].status == "ready", "the commit")
    job_control.cancel_job(engine, again, uuid_, others=True)
    until(lambda: not block_jobs(guest), "the end of the commit")


def test_jobs_that_are_no_block_jobs_are_listed_with_how_they_ended(
    boot: Boot, engine: Engine, workdir: Path
) -> None:
    guest = boot(VDA)
    uuid_ = guest.domain.UUIDString()
    create(guest, "refused", workdir / "missing" / "x")
    until(lambda: jobs_of(guest)["refused"]["status"] == "concluded", "the end")
    shown = listed(engine, guest)["refused"]
    assert (shown.type, shown.status, shown.task_id) == ("create", "concluded", "")
    assert "No such file" in shown.error
    for act in (
        lambda: job_control.pause(engine, "refused", uuid_),
        lambda: job_control.resume(engine, "refused", uuid_),
        lambda: job_control.set_speed(engine, MIB, "refused", uuid_),
        lambda: job_control.cancel_job(engine, "refused", uuid_, others=True),
    ):
        with pytest.raises(InvalidRequest, match=r"has nothing left to .*No such file"):
            act()
    with pytest.raises(UnknownTask, match="no block job nothing"):
        job_control.pause(engine, "nothing", uuid_)
    guest.qmp("job-dismiss", id="refused")
    assert listed(engine, guest) == {}


def test_a_backup_whose_target_stalls_is_cancelled_within_seconds(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    guest.qemu_io("vda", "write -P 1 0 32M")
    chain.take()
    guest.qemu_io("vda", "write -P 2 8M 32M")
    with Running(engine, guest, speed=4 * MIB) as running:
        os.kill(running.export_pid("vda", "t"), signal.SIGSTOP)
        # Whatever was on its way is stuck now; the jobs do not move.
        time.sleep(0.5)
        began = time.monotonic()
        job_control.cancel(engine, running.task_id)
        assert isinstance(running.raised(), Cancelled)
        took = time.monotonic() - began
    print(f"cancel of a stalled backup: {took:.2f} s")
    # "Within seconds": far below the stall_seconds after which it would have failed by itself.
    assert took < 5 < engine.settings.stall_seconds
    assert_nothing_remains(engine, guest)
    assert syncs(chain.take()) == {"vda": "incremental"}
    chain.prove_all()


def test_a_backup_of_a_domain_that_is_shut_off_is_steered_too(boot: Boot, engine: Engine) -> None:
    guest = boot(VDA)
    guest.qemu_io("vda", "write -P 1 0 32M")
    guest.power_off()
    with Running(engine, guest) as running:

        def shown() -> list[JobInfo]:
            return [j for j in listed(engine, guest).values() if j.task_id == running.task_id]

        job_control.pause(engine, running.task_id)
        until(lambda: [job.status for job in shown()] == ["paused"], "the pause")
        job_control.set_speed(engine, 2 * MIB, running.task_id)
        assert [job.speed for job in shown()] == [2 * MIB]
        job_control.cancel(engine, running.task_id)
        assert isinstance(running.raised(), Cancelled)
    assert listed(engine, guest) == {}
    assert_nothing_remains(engine, guest)


def test_a_run_that_prepares_says_so(engine: Engine) -> None:
    run = Run("t1", "backup", {}, "db1", "u1", "main", "p1", "2026-01-01", phase="standing")
    engine.journal.write(run)
    for act in (
        lambda: job_control.pause(engine, "t1"),
        lambda: job_control.set_speed(engine, MIB, "t1"),
    ):
        with pytest.raises(InvalidRequest, match="is still preparing") as caught:
            act()
        assert "Try again in a moment" in caught.value.mend
    with pytest.raises(InvalidRequest, match="-1 is negative"):
        job_control.set_speed(engine, -1, "t1")


def test_what_qemu_refuses_is_no_error_where_the_job_is_so_by_now(
    boot: Boot, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA)
    guest.qemu_io("vda", "write -P 1 0 32M")
    with Running(engine, guest) as running:
        job = f"virtvault-{tag_of(running.task_id)}-vda"
        run = engine.journal.read(running.task_id)
        assert run is not None
        stale = job_listing.listed(job_listing.control_monitor(engine, run))
        guest.qmp("block-job-pause", device=job)
        until(lambda: block_jobs(guest)[job]["status"] == "paused", "the pause")
        now = job_listing.listed
        answers = iter([stale])
        monkeypatch.setattr(job_listing, "listed", lambda m: next(answers, None) or now(m))
        assert "already paused" in job_control.pause(engine, running.task_id)
        # A refusal that stands is shown.
        monkeypatch.setattr(job_listing, "listed", lambda _: stale)
        with pytest.raises(MonitorError, match="refused block-job-pause"):
            job_control.pause(engine, running.task_id)
        monkeypatch.undo()
    assert not {n for n in nodes(guest) if n.startswith("vv")}
