"""``sync=none``: an instant that stays readable, and whatever ends it leaves the guest alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import MIB, with_settings
from tests.integration.scenes import (
    VDA,
    VDB_RAW,
    Boot,
    Open,
    Running,
    TakePoints,
    assert_nothing_remains,
    disk_of,
    give_new_content,
    node_of,
    nodes,
    processes,
    qemu_img,
)
from tests.lab import Guest, assert_same
from virtvault.errors import DomainBusy, DomainStopped, JobFailed, MonitorError, WorkFailed
from workers import questions
from workers.engine import Engine
from workers.jobs import Detached


def seen(url: str, destination: Path) -> Path:
    qemu_img("convert", "-f", "raw", "-O", "raw", url, destination)
    return destination


@pytest.fixture
def guest(boot: Boot) -> Guest:
    started = boot(VDA, VDB_RAW)
    give_new_content(started, 1)
    return started


def test_all_disks_show_one_instant_for_as_long_as_the_export_is_open(
    guest: Guest, engine: Engine, workdir: Path
) -> None:
    references = {t: guest.reference(t, workdir / f"reference-{t}") for t in guest.disks}
    guest.resume()
    with Open(engine, guest) as export:
        for value in (2, 3):
            give_new_content(guest, value)
            for target, spec in guest.disks.items():
                found = seen(export.urls[target], workdir / f"seen-{target}")
                assert_same(found, "raw", references[target], spec.format)
        result = export.close()
    assert result.state == "closed"
    assert all(e.scratch > 0 for e in result.exports)
    assert guest.qmp("query-status")["running"]
    assert_nothing_remains(engine, guest)


def test_nobody_can_write_through_it(guest: Guest, engine: Engine) -> None:
    with Open(engine, guest) as export:
        command = ["qemu-io", "-f", "raw", "-c", "write 0 512", export.urls["vda"]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "Permission denied" in done.stderr


def test_a_reader_that_stops_reading_holds_nobody_up(guest: Guest, engine: Engine) -> None:
    with Open(engine, guest) as export:
        reader = ["qemu-io", "-r", "-f", "raw", export.urls["vda"]]
        with subprocess.Popen(reader, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stalled:
            assert stalled.stdin and stalled.stdout
            stalled.stdout.read(8)
            give_new_content(guest, 2)
            export.close()
            stalled.stdin.close()
    assert_nothing_remains(engine, guest)


def test_it_ends_with_its_domain(guest: Guest, engine: Engine) -> None:
    with Open(engine, guest) as export:
        guest.power_off()
        error = export.raised()
    assert isinstance(error, DomainStopped)
    assert guest.name in error.message
    assert_nothing_remains(engine, guest)


def test_it_ends_with_its_scratch_limit_and_the_guest_writes_on(
    guest: Guest, engine: Engine
) -> None:
    small = with_settings(engine, scratch_limit=4 * MIB)
    guest.qemu_io("vda", "write -P 1 0 32M")
    with Open(small, guest) as export:
        slowest = max(guest.qemu_io("vda", f"write -P 2 {at}M 1M") for at in range(32))
        error = export.raised()
    assert isinstance(error, JobFailed)
    assert "scratch image was full" in error.message
    assert "scratch_limit" in error.mend
    assert slowest < 5.0
    assert_nothing_remains(engine, guest)


def test_a_backup_beside_it_is_told_what_runs(
    guest: Guest, points: TakePoints, engine: Engine
) -> None:
    with Open(engine, guest) as export, pytest.raises(DomainBusy) as caught:
        points(guest).back_up()
    assert "is being exported (sync none, since 20" in caught.value.message
    assert export.task_id in caught.value.message
    assert f"virtvault cancel {export.task_id}" in caught.value.mend


def test_an_export_beside_a_backup_is_told_which_jobs_run(guest: Guest, engine: Engine) -> None:
    with Running(engine, guest) as running:
        with pytest.raises(DomainBusy) as caught, Open(engine, guest):
            pass
        running.hurry()
        running.result()
    assert f"virtvault-{running.tag}-vda" in caught.value.message
    assert "sync auto" in caught.value.message


def test_it_stays_open_while_its_worker_restarts(
    guest: Guest, engine: Engine, workdir: Path
) -> None:
    reference = guest.reference("vda", workdir / "reference")
    with Open(engine, guest) as export:
        export.stopping.set()
        assert isinstance(export.raised(), Detached)
    give_new_content(guest, 2)
    assert_same(seen(export.urls["vda"], workdir / "seen"), "raw", reference, "qcow2")
    again = Open(Engine.of(engine.settings), guest, task_id=export.task_id)
    with again:
        assert again.urls == export.urls
        assert_same(seen(again.urls["vda"], workdir / "seen-again"), "raw", reference, "qcow2")
        assert again.close().state == "closed"
    assert_nothing_remains(engine, guest)


def test_closed_once_it_gives_the_same_result_again(guest: Guest, engine: Engine) -> None:
    with Open(engine, guest) as export:
        result = export.close()
    again = Open(engine, guest, task_id=export.task_id)
    again._thread.start()
    again._thread.join(20)
    assert again._result == result
    assert_nothing_remains(engine, guest)


def test_it_leaves_the_chain_of_points_alone(
    guest: Guest, points: TakePoints, engine: Engine
) -> None:
    chain = points(guest)
    first = chain.take()
    give_new_content(guest, 2)
    with Open(engine, guest):
        give_new_content(guest, 3)
    second = chain.take()
    assert disk_of(second, "vda").parent == first.point
    chain.prove_all()


def test_where_qemu_serves_nbd_for_somebody_else_it_is_refused(
    guest: Guest, engine: Engine, workdir: Path
) -> None:
    other = workdir / "guest" / "other.sock"
    address = {"type": "unix", "data": {"path": str(other)}}
    guest.qmp("nbd-server-start", addr=address)
    with pytest.raises((WorkFailed, MonitorError), match="NBD server already running"):
        Open(engine, guest).__enter__()
    assert_nothing_remains(engine, guest)
    # Theirs is still there.
    guest.qmp("nbd-server-stop")
    assert not [n for n in nodes(guest) if n.startswith("vv")]
    assert not processes(f"{engine.settings.runtime_dir}/")
    assert not node_of(guest, "vda").startswith("vv")


def test_open_exports_leave_a_slot_to_backups(boot: Boot, engine: Engine) -> None:
    two = with_settings(engine, slots=2)
    first, second = boot(VDA), boot(VDA)
    with Open(two, first) as export:
        with pytest.raises(WorkFailed, match="would take the last of the 2 slots of lab") as full:
            Open(two, second).__enter__()
        assert export.task_id in full.value.message
        assert_nothing_remains_of(second)
    assert_nothing_remains(two, second)


def assert_nothing_remains_of(guest: Guest) -> None:
    assert not [name for name in nodes(guest) if name.startswith("vv")]


def test_its_disks_are_listed_as_what_they_are(guest: Guest, engine: Engine) -> None:
    with Open(engine, guest):
        infos = {info.target: info for info in questions.disks(engine, guest.name)}
    assert infos["vda"].skip == ""
    assert infos["vda"].source == str(guest.image("vda"))
