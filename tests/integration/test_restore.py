"""A restored disk is what the guest's disk was, or there is no file at all."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.integration.conftest import MIB, Points, with_settings
from tests.integration.scenes import (
    files,
    give_new_content,
    image_of,
    processes,
    qemu_img,
    until,
)
from tests.integration.test_faults import tiny
from tests.lab import DiskSpec, Guest, Hypervisor, assert_same
from virtvault.errors import (
    Cancelled,
    DestinationExists,
    DomainStopped,
    InvalidRequest,
    JobFailed,
    NoRoom,
    RepositoryUnusable,
    UnknownDisk,
    UnknownPoint,
    UnknownRepository,
    VirtvaultError,
)
from virtvault.models import Progress, RestoreRequest, RestoreResult
from virtvault.settings import RepositorySettings, Settings
from workers.backup import Duplicate
from workers.engine import Engine, Ties
from workers.jobs import Detached
from workers.restore import daemon_of, restore

ODD = 64 * MIB + 3 * 512


@pytest.fixture(scope="module")
def taken(hypervisor: Hypervisor) -> Iterator[Points]:
    """Three points, full and two incrementals, of a qcow2 and an odd-sized raw disk."""
    directory = Path(tempfile.mkdtemp(prefix="vvlab-", dir="/var/tmp"))
    directory.chmod(0o711)
    for name in ("repo", "guest"):
        (directory / name).mkdir()
    settings = Settings(
        libvirt_uri=hypervisor.uri,
        state_dir=str(directory / "state"),
        runtime_dir=f"/run/{directory.name}",
        repositories={"main": RepositorySettings("main", str(directory / "repo"))},
    )
    disks = [DiskSpec("vda", "qcow2", 64 * MIB), DiskSpec("vdb", "raw", ODD)]
    connection = hypervisor.connect()
    with Guest(connection, directory / "guest", directory.name, disks, boot=False) as guest:
        guest.start()
        made = Points(Engine.of(settings), guest, directory, [])
        for value in (1, 2, 3):
            give_new_content(guest, value)
            for target in guest.disks:
                guest.qemu_io(target, f"write -P {value} {value * 4}M 5M")
                guest.qemu_io(target, f"write -z {value * 5}M 1M")
            guest.qemu_io("vdb", f"write -P {value} {ODD - 512} 512")
            made.take()
        yield made
    connection.close()
    shutil.rmtree(directory)
    shutil.rmtree(settings.runtime_dir)


@pytest.fixture
def chain(taken: Points, engine: Engine, workdir: Path) -> Points:
    """The points in a repository of the test's own."""
    shutil.copytree(taken.directory / "repo", workdir / "repo", dirs_exist_ok=True)
    return replace(taken, engine=engine, taken=list(taken.taken))


@contextmanager
def event_loop() -> Iterator[None]:
    """The QMP library runs on the thread's event loop; whoever made it closes it."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@pytest.fixture(autouse=True)
def own_event_loop() -> Iterator[None]:
    with event_loop():
        yield


class Restoring:
    """A restore in a thread of its own; its jobs crawl until :meth:`hurry`."""

    def __init__(self, engine: Engine, point: str, to: str, task_id: str = "") -> None:
        self.engine = engine
        self.task_id = task_id or uuid.uuid4().hex
        self.request = RestoreRequest(point=point, to=to, speed=MIB)
        self.stopping = threading.Event()
        self._copying = threading.Event()
        self._raised: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="restore under test")

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self._copying.is_set() or not self._thread.is_alive(), "the jobs")
        assert self._copying.is_set(), self._raised
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stopping.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def raised(self) -> BaseException:
        self._thread.join(30)
        assert not self._thread.is_alive()
        assert self._raised is not None, "it succeeded"
        return self._raised

    def daemon_pid(self) -> int:
        directory = daemon_of(self.engine, self.task_id).directory
        return int((directory / "daemon.pid").read_text())

    def _run(self) -> None:
        ties = Ties(self.task_id, self._see, self.stopping.is_set)
        with event_loop():
            try:
                restore(self.engine, self.request, ties)
            except BaseException as error:
                self._raised = error

    def _see(self, progress: Progress) -> None:
        if progress.phase == "copying" and progress.done:
            self._copying.set()


def run(engine: Engine, point: str, to: str = "out", **request: Any) -> RestoreResult:
    return restore(engine, RestoreRequest(point=point, to=to, **request), Ties(uuid.uuid4().hex))


def assert_restored(chain: Points, number: int, result: RestoreResult) -> None:
    """The restored files are the disks at that point's instant, and stand alone."""
    references = chain.taken[number][1]
    for disk in result.disks:
        spec = chain.guest.disks[disk.target]
        assert_same(Path(disk.path), disk.format, references[disk.target], spec.format)
        assert disk.virtual_size == spec.size
        assert "backing file" not in qemu_img("info", "-f", disk.format, disk.path)


def assert_nothing_remains(engine: Engine) -> None:
    """No daemon, socket, journal or partial file of a restore."""
    runtime, state = engine.settings.runtime_dir, engine.settings.state_dir
    until(lambda: not processes(f"{runtime}/r-"), "the daemon's end", 5)
    assert files(runtime, f"{state}/runs") == []
    for root in engine.settings.restore_roots:
        assert not list(Path(root).rglob(".*.partial"))


# -- what is restored ------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["qcow2", "raw"])
def test_every_point_of_a_chain_restores_to_the_disks_at_its_instant(
    chain: Points, engine: Engine, workdir: Path, format_: str
) -> None:
    for number, (taken, _) in enumerate(chain.taken):
        result = run(engine, taken.point, f"out-{number}", format=format_)
        assert (result.state, result.to) == ("complete", str(workdir / f"out-{number}"))
        assert sorted(p.name for p in Path(result.to).iterdir()) == [
            f"vda.{format_}",
            f"vdb.{format_}",
        ]
        assert_restored(chain, number, result)
        if format_ == "raw":
            sizes = [Path(disk.path).stat().st_size for disk in result.disks]
            assert sizes == [64 * MIB, ODD]
            assert all(disk.stored < 32 * MIB for disk in result.disks)  # holes stay holes
    assert_nothing_remains(engine)


def test_chosen_disks_alone_are_restored(chain: Points, engine: Engine) -> None:
    result = run(engine, chain.taken[1][0].point, disks=("vdb",))
    assert [disk.target for disk in result.disks] == ["vdb"]
    assert [path.name for path in Path(result.to).iterdir()] == ["vdb.qcow2"]
    assert_restored(chain, 1, result)


def test_a_restore_does_not_disturb_the_guest_or_the_chain(
    boot: Callable[..., Guest], points: Callable[[Guest], Points], engine: Engine
) -> None:
    chain = points(boot(DiskSpec("vda", "qcow2", 64 * MIB)))
    give_new_content(chain.guest, 1)
    chain.take()
    run(engine, chain.taken[0][0].point)
    give_new_content(chain.guest, 9)
    assert {disk.sync for disk in chain.take().disks} == {"incremental"}
    chain.prove_all()


# -- bad input -------------------------------------------------------------------------------------


# What the worker notes for itself: who holds a destination, which repository it has seen.
OWN = {"locks", "repositories"}


def assert_refused(
    engine: Engine, error: type[VirtvaultError], match: str, point: str, **request: Any
) -> None:
    """Refused with a mend, and no file was made or changed."""
    roots = engine.settings.restore_roots

    def look() -> list[tuple[str, int]]:
        return [
            (p, Path(p).stat().st_mtime_ns) for p in files(*roots) if not OWN & set(Path(p).parts)
        ]

    before = look()
    with pytest.raises(error, match=match) as caught:
        run(engine, point, **request)
    assert type(caught.value) is error
    assert caught.value.mend
    assert look() == before
    assert_nothing_remains(engine)


def test_bad_requests_are_refused_before_anything_is_touched(
    chain: Points, engine: Engine, workdir: Path
) -> None:
    point = chain.taken[0][0].point
    refused = assert_refused
    unknown = "20200101T000000Z-00000000"
    refused(engine, UnknownPoint, unknown, unknown)
    refused(engine, UnknownDisk, "no disk 'vdq'.*vda, vdb", point, disks=("vdq",))
    refused(engine, UnknownRepository, "no repository 'else'", point, repository="else")
    outside = "outside the restore roots"
    refused(engine, InvalidRequest, outside, point, to="/etc/virtvault-test")
    refused(engine, InvalidRequest, outside, point, to="../elsewhere")
    refused(engine, InvalidRequest, outside, point, to=str(workdir / ".." / "elsewhere"))
    (workdir / "link").symlink_to("/etc")
    refused(engine, InvalidRequest, outside, point, to="link/virtvault-test")
    (workdir / "file").write_text("mine")
    refused(engine, InvalidRequest, "Cannot make the directory", point, to="file")
    rootless = with_settings(engine, restore_roots=())
    refused(rootless, InvalidRequest, "no restore_roots", point)


def test_an_existing_file_is_not_overwritten_and_no_other_disk_is_written_beside_it(
    chain: Points, engine: Engine, workdir: Path
) -> None:
    (workdir / "out").mkdir()
    (workdir / "out" / "vdb.qcow2").write_text("mine")
    refused = assert_refused
    refused(engine, DestinationExists, "out/vdb.qcow2", chain.taken[0][0].point)
    assert (workdir / "out" / "vdb.qcow2").read_text() == "mine"


def test_a_destination_without_the_room_is_refused(
    chain: Points, engine: Engine, workdir: Path
) -> None:
    with tiny(workdir / "tiny", "4M"):
        assert_refused(engine, NoRoom, "bytes free and", chain.taken[2][0].point, to="tiny")


def test_a_destination_that_fills_up_on_the_way_fails_and_leaves_nothing(
    chain: Points, engine: Engine, workdir: Path
) -> None:
    with (
        tiny(workdir / "tiny", "64M") as path,
        Restoring(engine, chain.taken[2][0].point, "tiny") as restoring,
    ):
        with (
            (path / "filler").open("wb", buffering=0) as file,
            pytest.raises(OSError, match="space"),
        ):
            while file.write(bytes(MIB)):
                pass
        error = restoring.raised()
        assert isinstance(error, JobFailed)
        assert "No space left on device" in error.message
        assert [p.name for p in path.iterdir()] == ["filler"]
    assert_nothing_remains(engine)


# -- damaged chains --------------------------------------------------------------------------------


def test_a_chain_with_a_missing_or_cut_link_is_refused_from_there_on(
    chain: Points, engine: Engine
) -> None:
    (first, _), (second, _), (third, _) = chain.taken
    middle = image_of(engine, second)
    hidden = middle.rename(middle.with_suffix(".hidden"))
    for broken in (second, third):
        assert_refused(engine, RepositoryUnusable, "which is not there", broken.point)
    assert_restored(chain, 0, run(engine, first.point, "first"))
    hidden.rename(middle)
    content = middle.read_bytes()
    os.truncate(middle, len(content) - 512)
    assert_refused(engine, RepositoryUnusable, f"and not {len(content)}", third.point)
    middle.write_bytes(content)
    shutil.rmtree(image_of(engine, first).parent)
    assert_refused(engine, RepositoryUnusable, first.point, third.point)


def test_an_image_with_a_crafted_backing_file_is_refused(
    chain: Points, engine: Engine, workdir: Path
) -> None:
    secret = workdir / "secret.raw"
    secret.write_bytes(b"secret" * 10922 + b"...")
    full, incremental = (image_of(engine, chain.taken[n][0]) for n in (0, 2))
    for image, backing in ((full, "/etc/passwd"), (incremental, str(secret))):
        length = image.stat().st_size
        before = image.read_bytes()
        qemu_img("rebase", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", image)
        os.truncate(image, length)  # as its manifest says
        assert_refused(engine, RepositoryUnusable, f"points to {backing}", chain.taken[2][0].point)
        image.write_bytes(before)


def test_an_image_with_a_crafted_data_file_is_refused(
    chain: Points, engine: Engine, workdir: Path
) -> None:
    image = image_of(engine, chain.taken[0][0])
    length = image.stat().st_size
    image.unlink()
    data = f"data_file={workdir}/secret.raw,data_file_raw=on"
    qemu_img("create", "-q", "-f", "qcow2", "-o", data, image, str(64 * MIB))
    with image.open("ab") as file:
        file.truncate(length)
    assert_refused(engine, RepositoryUnusable, "secret.raw", chain.taken[0][0].point)


# -- on the way ------------------------------------------------------------------------------------


def test_a_cancelled_restore_leaves_nothing_at_the_destination(
    chain: Points, engine: Engine, workdir: Path
) -> None:
    with Restoring(engine, chain.taken[2][0].point, "out") as restoring:
        engine.journal.wishes(restoring.task_id).touch()
        assert isinstance(restoring.raised(), Cancelled)
    assert files(workdir / "out") == []
    assert_nothing_remains(engine)


def test_a_detached_restore_goes_on_and_the_same_task_finishes_it(
    chain: Points, engine: Engine
) -> None:
    with Restoring(engine, chain.taken[2][0].point, "out") as restoring:
        pid = restoring.daemon_pid()
        restoring.stopping.set()
        assert isinstance(restoring.raised(), Detached)
    assert Path(f"/proc/{pid}").exists()
    hurry(engine, restoring.task_id)
    result = restore(Engine.of(engine.settings), restoring.request, Ties(restoring.task_id))
    assert_restored(chain, 2, result)
    assert_nothing_remains(engine)


def hurry(engine: Engine, task_id: str) -> None:
    """Take the speed limit off a restore."""
    monitor = daemon_of(engine, task_id).monitor(10.0, "control")
    for job in monitor.execute("query-block-jobs"):
        monitor.execute("block-job-set-speed", device=job["device"], speed=0)
    monitor.close()


def test_a_restore_whose_daemon_was_killed_fails_and_the_same_task_starts_again(
    chain: Points, engine: Engine, workdir: Path
) -> None:
    with Restoring(engine, chain.taken[2][0].point, "out") as restoring:
        os.kill(restoring.daemon_pid(), signal.SIGKILL)
        assert isinstance(restoring.raised(), DomainStopped)
    assert files(workdir / "out") == []
    assert_nothing_remains(engine)
    again = RestoreRequest(point=chain.taken[2][0].point, to="out")
    assert_restored(chain, 2, restore(engine, again, Ties(restoring.task_id)))


def test_a_restore_whose_daemon_died_while_no_worker_looked_starts_again(
    chain: Points, engine: Engine
) -> None:
    with Restoring(engine, chain.taken[2][0].point, "out") as restoring:
        restoring.stopping.set()
        assert isinstance(restoring.raised(), Detached)
        os.kill(restoring.daemon_pid(), signal.SIGKILL)
    again = RestoreRequest(point=chain.taken[2][0].point, to="out")
    result = restore(engine, again, Ties(restoring.task_id))
    assert_restored(chain, 2, result)
    assert_nothing_remains(engine)


def test_two_restores_into_one_directory_do_not_meet(chain: Points, engine: Engine) -> None:
    point = chain.taken[2][0].point
    with Restoring(engine, point, "out") as restoring:
        with pytest.raises(DestinationExists, match=restoring.task_id):
            run(engine, point, "out")
        with pytest.raises(Duplicate):
            restore(engine, restoring.request, Ties(restoring.task_id))
        engine.journal.wishes(restoring.task_id).touch()
        assert isinstance(restoring.raised(), Cancelled)
    assert_nothing_remains(engine)


def test_the_same_restore_delivered_again_after_its_end_is_no_failure(
    chain: Points, engine: Engine
) -> None:
    request = RestoreRequest(point=chain.taken[2][0].point, to="out")
    task = uuid.uuid4().hex
    first = restore(engine, request, Ties(task))
    assert restore(engine, request, Ties(task)).disks == first.disks
