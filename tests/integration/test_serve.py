"""``virtvault export``: a point is served read-only for as long as it is wanted and no longer."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Self

import pytest

from tests.integration.conftest import Points, with_settings
from tests.integration.scenes import (
    VDA,
    VDB_RAW,
    Boot,
    TakePoints,
    files,
    give_new_content,
    image_of,
    processes,
    qemu_img,
    until,
)
from tests.lab import assert_same
from virtvault.errors import JobFailed, PointBad, RepositoryUnusable, UnknownDisk, WorkFailed
from virtvault.models import DiskVerdict, Progress, PruneRequest, ServeRequest, ServeResult, Verdict
from workers import job_control
from workers.backup import Duplicate
from workers.engine import Engine, Ties, now
from workers.jobs import Detached
from workers.prune import prune
from workers.repository import sidecar
from workers.serve import daemon_of, serve


class Served:
    """A served point in a thread of its own, open when the block is entered."""

    def __init__(self, engine: Engine, point: str, *, task_id: str = "", **request: Any) -> None:
        self.engine = engine
        self.task_id = task_id or uuid.uuid4().hex
        self.stopping = threading.Event()
        self.urls: dict[str, str] = {}
        self._request = ServeRequest(point=point, **request)
        self._result: ServeResult | None = None
        self._raised: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="serve under test")

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self.urls or not self._thread.is_alive(), "the point to be served")
        if not self.urls and self._raised is not None:
            raise self._raised
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.close()

    def close(self) -> ServeResult:
        """End it by hand, as ``virtvault cancel`` does; gives what it returned."""
        self.engine.journal.wishes(self.task_id).touch()
        return self.result()

    def result(self) -> ServeResult:
        self._thread.join(30)
        assert not self._thread.is_alive(), "it does not end"
        if self._raised is not None:
            raise self._raised
        assert self._result is not None
        return self._result

    def raised(self) -> BaseException:
        self._thread.join(30)
        assert not self._thread.is_alive(), "it does not end"
        assert self._raised is not None, f"it ended well: {self._result}"
        return self._raised

    def daemon_pid(self) -> int:
        return int((daemon_of(self.engine, self.task_id).directory / "daemon.pid").read_text())

    def _run(self) -> None:
        ties = Ties(self.task_id, self._see, self.stopping.is_set)
        try:
            self._result = serve(self.engine, self._request, ties)
        except BaseException as error:
            self._raised = error

    def _see(self, progress: Progress) -> None:
        self.urls = progress.exports or self.urls


@pytest.fixture
def chain(boot: Boot, points: TakePoints) -> Points:
    """A full and an incremental of a qcow2 and a raw disk."""
    guest = boot(VDA, VDB_RAW)
    made = points(guest)
    for value in (1, 2):
        give_new_content(guest, value)
        made.take()
    return made


def assert_served(chain: Points, number: int, urls: dict[str, str], workdir: Path) -> None:
    """Stock qemu-img reads through the URLs what the guest's disks were at that point."""
    for target, url in urls.items():
        seen = workdir / f"seen-{target}"
        qemu_img("convert", "-f", "raw", "-O", "raw", url, seen)
        spec = chain.guest.disks[target]
        assert_same(seen, "raw", chain.taken[number][1][target], spec.format)


def assert_nothing_remains(engine: Engine) -> None:
    runtime, state = engine.settings.runtime_dir, engine.settings.state_dir
    until(lambda: not processes(f"{runtime}/s-"), "the daemon's end", 5)
    assert files(runtime, f"{state}/runs") == []


def test_each_point_is_read_as_it_was_and_nobody_can_write_to_it(
    chain: Points, engine: Engine, workdir: Path
) -> None:
    point = chain.taken[1][0].point
    before = {path: path.stat().st_mtime_ns for path in (workdir / "repo").rglob("*.qcow2")}
    with (
        Served(engine, chain.taken[0][0].point) as older,
        Served(engine, point) as newer,
    ):
        assert (sorted(older.urls), sorted(newer.urls)) == (["vda", "vdb"], ["vda", "vdb"])
        assert_served(chain, 0, older.urls, workdir)
        assert_served(chain, 1, newer.urls, workdir)
        write = ["qemu-io", "-f", "raw", "-c", "write 0 512", newer.urls["vda"]]
        done = subprocess.run(write, capture_output=True, text=True, check=False)
        assert done.returncode and "Permission denied" in done.stderr
        # What keeps prune away: nobody can open the point's own image for writing.
        own = image_of(engine, chain.taken[1][0])
        write = ["qemu-io", "-f", "qcow2", "-c", "write 0 512", str(own)]
        done = subprocess.run(write, capture_output=True, text=True, check=False)
        assert done.returncode and 'Failed to get "write" lock' in done.stderr
        pruned = prune(engine, PruneRequest(points=(chain.taken[0][0].point,)), Ties("p1"))
        assert "is being read" in pruned.postponed[chain.taken[0][0].point]
        result = newer.close()
    assert (result.state, result.point) == ("closed", point)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert serve(engine, ServeRequest(point), Ties(newer.task_id)) == result
    assert_nothing_remains(engine)


def test_it_outlives_its_worker_and_ends_when_its_time_is_up(
    chain: Points, engine: Engine, workdir: Path
) -> None:
    point = chain.taken[1][0].point
    with Served(engine, point, seconds=3600) as served:
        with pytest.raises(Duplicate):
            serve(engine, ServeRequest(point), Ties(served.task_id))
        served.stopping.set()
        assert isinstance(served.raised(), Detached)
    assert_served(chain, 1, served.urls, workdir)
    again = Served(Engine.of(engine.settings), point, seconds=3600, task_id=served.task_id)
    with again:
        assert again.urls == served.urls
        again.stopping.set()
        assert isinstance(again.raised(), Detached)
    run = engine.journal.read(served.task_id)
    assert run is not None
    run.draft["opened"] = time.time() - 3600
    engine.journal.write(run)
    result = serve(engine, ServeRequest(point, seconds=3600), Ties(served.task_id))
    assert result.state == "timed out"
    assert_nothing_remains(engine)


def test_a_daemon_that_dies_is_told_and_not_replaced_behind_its_readers(
    chain: Points, engine: Engine
) -> None:
    point = chain.taken[1][0].point
    with Served(engine, point) as served:
        os.kill(served.daemon_pid(), signal.SIGKILL)
        error = served.raised()
    assert isinstance(error, JobFailed)
    assert f"Point {point} is not served any more: its storage daemon is gone" in error.message
    assert_nothing_remains(engine)
    with Served(engine, point) as served:
        served.stopping.set()
        assert isinstance(served.raised(), Detached)
        os.kill(served.daemon_pid(), signal.SIGKILL)
    with pytest.raises(JobFailed, match="is not served any more"):
        serve(engine, ServeRequest(point), Ties(served.task_id))
    assert_nothing_remains(engine)


def test_one_that_cannot_be_taken_up_again_is_closed_and_not_left_open(
    chain: Points, engine: Engine
) -> None:
    point = chain.taken[1][0].point
    with Served(engine, point) as served:
        served.stopping.set()
        assert isinstance(served.raised(), Detached)
    repository = Path(engine.settings.repositories["main"].path)
    repository.rename(repository.with_name("away"))
    with pytest.raises(RepositoryUnusable, match="is not a directory"):
        serve(Engine.of(engine.settings), ServeRequest(point), Ties(served.task_id))
    assert_nothing_remains(engine)


def test_what_cannot_be_served_is_refused_before_anything_is_opened(
    chain: Points, engine: Engine
) -> None:
    full, point = chain.taken[0][0], chain.taken[1][0].point
    with pytest.raises(UnknownDisk, match=r"no disk 'vdz'.*vda, vdb"):
        serve(engine, ServeRequest(point, disks=("vdz",)), Ties("t1"))
    with pytest.raises(WorkFailed, match="last of the 1 slots"):
        serve(with_settings(engine, slots=1), ServeRequest(point), Ties("t2"))
    disks = (DiskVerdict("vda", "bad", "vda.qcow2 is not what it was"),)
    bad = Verdict(full.point, "bad", now(), "lab", "t3", "vda.qcow2 is not what it was", disks)
    sidecar.write_verdict(image_of(engine, full).parent, bad)
    with pytest.raises(PointBad, match=f"needs point {full.point}, found bad"):
        serve(engine, ServeRequest(point), Ties("t4"))
    assert_nothing_remains(engine)
    with Served(engine, point, force=True) as served:
        said = job_control.cancel(engine, served.task_id)
        assert served.result().state == "closed"
    assert said == f"Task {served.task_id}: the export of point {point} is being closed."
    # Its other disk is no worse for it.
    with Served(engine, point, disks=("vdb",)) as served:
        assert list(served.urls) == ["vdb"]
    assert_nothing_remains(engine)
