"""Prune on real chains: beside backups and readers, with damage, with bad input."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.conftest import Points
from tests.integration.scenes import VDA, Boot, TakePoints, give_new_content, syncs, until
from tests.integration.stored import Stored
from virtvault.errors import (
    BadInput,
    Cancelled,
    InvalidRequest,
    NoRoom,
    PointBusy,
    RepositoryUnusable,
    UnknownPoint,
)
from virtvault.models import Progress, PruneRequest, PruneResult, RetentionRules
from workers import reading
from workers.engine import Engine, Ties, tag_of
from workers.jobs import Detached
from workers.merge import Damaged
from workers.prune import prune
from workers.repository import manifest, sidecar
from workers.storage_daemon import StorageDaemon, daemon_of


@pytest.fixture
def stored(workdir: Path) -> Iterator[Stored]:
    made = Stored(workdir / "s")
    yield made
    made.close()


def run(engine: Engine, *points: str, task_id: str = "", **request: object) -> PruneResult:
    wanted = PruneRequest(points=points, **request)  # type: ignore[arg-type]
    return prune(engine, wanted, Ties(task_id or uuid.uuid4().hex))


class Pruning:
    """A prune in a thread of its own; its merges crawl (64 KiB/s), and it is at the first one."""

    def __init__(self, engine: Engine, *points: str) -> None:
        self.engine = engine
        self.task_id = uuid.uuid4().hex
        self.merging = threading.Event()
        self.stopping = threading.Event()
        self.outcome: PruneResult | BaseException | None = None
        self._request = PruneRequest(points=points, speed=65536)
        self._thread = threading.Thread(target=self._run, name="prune under test")

    def __enter__(self) -> Pruning:
        self._thread.start()
        until(lambda: self.merging.is_set() or not self._thread.is_alive(), "the merge")
        assert self.merging.is_set(), self.outcome
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.cancel()
            self.join()

    def hurry(self) -> None:
        directory = daemon_of(self.engine.settings.runtime_dir, "prune", tag_of(self.task_id))
        monitor = directory.monitor(10.0, "control")
        for job in monitor.execute("query-block-jobs"):
            monitor.execute("block-job-set-speed", device=job["device"], speed=0)
        monitor.close()

    def cancel(self) -> None:
        self.engine.journal.wishes(self.task_id).touch()

    def join(self) -> PruneResult | BaseException | None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.outcome

    def _run(self) -> None:
        try:
            ties = Ties(self.task_id, self._see, self.stopping.is_set)
            self.outcome = prune(self.engine, self._request, ties)
        except BaseException as error:
            self.outcome = error

    def _see(self, progress: Progress) -> None:
        if progress.phase == "merging" and any(disk.done for disk in progress.disks):
            self.merging.set()


# -- what it does ----------------------------------------------------------------------------------


def test_rules_keep_and_the_rest_is_merged(stored: Stored) -> None:
    ids = stored.chain(6)
    rules = RetentionRules(last=2)
    plan = run(stored.engine, rules=rules, dry_run=True)
    assert stored.ids() == ids
    done = run(stored.engine, rules=rules)
    assert {p.point for p in done.removed} == {p.point for p in plan.removed} == set(ids[:4])
    assert stored.ids() == ids[4:]
    assert [kept.reasons[0] for kept in done.kept] == [
        "last 2 of 2",
        "newest: the next incremental builds on it",
    ]
    stored.assert_equal(ids[4:])
    stored.assert_whole()
    oldest = stored.repository.find(ids[4])
    assert (oldest.disks[0].sync, oldest.disks[0].parent) == ("full", "")
    assert list(oldest.merged) == ids[:4]
    # Again there is nothing to do.
    assert run(stored.engine, rules=rules).removed == ()


def test_what_is_protected_and_what_is_newest_stays(stored: Stored) -> None:
    ids = stored.chain(4)
    directory = stored.repository.directory(stored.uuid, ids[1])
    sidecar.write(directory, sidecar.PROTECTED, {"reason": "audit"})
    run(stored.engine, rules=RetentionRules(last=1))
    assert stored.ids() == [ids[1], ids[3]]
    stored.assert_equal([ids[1], ids[3]])
    with pytest.raises(InvalidRequest, match="protected: audit"):
        run(stored.engine, ids[1])
    with pytest.raises(InvalidRequest, match="newest of disk vda"):
        run(stored.engine, ids[3])
    assert stored.ids() == [ids[1], ids[3]]


@pytest.mark.parametrize("lost", ["of a former version", "lost its list"])
def test_what_has_no_digests_is_merged_and_has_none_then(stored: Stored, lost: str) -> None:
    ids = stored.chain(4)
    directory = stored.repository.directory(stored.uuid, ids[1])
    point = manifest.read(directory)
    for path in directory.glob("*.digests"):
        path.unlink()
    if lost == "of a former version":
        old = replace(point, disks=(replace(point.disks[0], digests=""),))
        (directory / manifest.FILE).write_text(manifest.text(old))
    run(stored.engine, ids[1])
    stored.assert_equal([ids[0], *ids[2:]])
    assert stored.repository.find(ids[2]).disks[0].digests == ""
    run(stored.engine, ids[0])
    stored.assert_equal(ids[2:])


def test_the_same_prune_delivered_again_returns_what_it_did(stored: Stored) -> None:
    ids = stored.chain(3)
    done = run(stored.engine, ids[0], task_id="once")
    assert run(stored.engine, ids[0], task_id="once") == done


# -- beside others ---------------------------------------------------------------------------------


def test_backups_go_on_beside_a_merge_of_the_same_chain(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    chain = points(boot(VDA))
    for value in (1, 2, 3):
        give_new_content(chain.guest, value)
        chain.guest.qemu_io("vda", f"write -P {value} {16 * value}M 1M")
        chain.take()
    taken = [result.point for result, _ in chain.taken]
    with Pruning(engine, taken[0], taken[1]) as pruning:
        give_new_content(chain.guest, 4)
        assert syncs(chain.take()) == {"vda": "incremental"}
        pruning.hurry()
        assert isinstance(pruning.join(), PruneResult)
    give_new_content(chain.guest, 5)
    assert syncs(chain.take()) == {"vda": "incremental"}
    _prove_from(chain, 2)


def test_a_backup_that_began_before_a_merge_ends_after_it(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    from tests.integration.scenes import Running

    chain = points(boot(VDA))
    for value in (1, 2, 3):
        give_new_content(chain.guest, value)
        chain.take()
    taken = [result.point for result, _ in chain.taken]
    give_new_content(chain.guest, 4)
    reference = chain.guest.reference("vda", chain.directory / "ref-live-vda")
    with Running(engine, chain.guest, speed=65536) as backup:
        # What it stands on is not removed; what that stands on is merged into it.
        with pytest.raises(InvalidRequest, match="newest"):
            run(engine, taken[2])
        done = run(engine, taken[0], taken[1])
        assert {removed.point for removed in done.removed} == set(taken[:2])
        backup.hurry()
        result = backup.result()
    assert syncs(result) == {"vda": "incremental"}
    chain.taken.append((result, {"vda": reference}))
    _prove_from(chain, 2)


def _prove_from(chain: Points, first: int) -> None:
    chain.taken = chain.taken[first:]
    chain.prove_all()


@pytest.fixture
def daemon(stored: Stored) -> Iterator[StorageDaemon]:
    made = StorageDaemon(Path(stored.settings.runtime_dir, "reader"))
    made.start()
    yield made
    made.end()
    made.remove()


@pytest.mark.parametrize("which", [1, 2])
def test_points_that_are_being_read_are_not_merged_away(
    stored: Stored, daemon: StorageDaemon, which: int
) -> None:
    """The one whose image takes in the others, and one between."""
    ids = stored.chain(4)
    monitor = daemon.monitor(10.0)
    reading.open_sources(monitor, stored.settings, stored.repository, ids[which])
    done = run(stored.engine, *ids[1:3])
    assert f"Point {ids[which]} is being read" in done.postponed[ids[1]]
    assert (done.removed, stored.ids()) == ((), ids)
    stored.assert_equal(ids)
    monitor.close()
    daemon.end()
    assert len(run(stored.engine, *ids[1:3]).removed) == 2
    stored.assert_equal([ids[0], ids[3]])


def test_a_point_of_which_one_disk_is_being_read_goes_or_stays_as_a_whole(
    workdir: Path, daemon: StorageDaemon
) -> None:
    stored = Stored(workdir / "two", 5, ("vda", "vdb"))
    ids = stored.chain(3)
    monitor = daemon.monitor(10.0)
    reading.open_sources(monitor, stored.settings, stored.repository, ids[0], ["vdb"])
    done = run(stored.engine, ids[0])
    assert (done.removed, stored.ids()) == ((), ids)
    assert "is being read" in done.postponed[ids[0]]
    assert not stored.repository.find(ids[1]).merged
    monitor.close()
    stored.assert_whole()


def test_nothing_is_merged_below_a_reader_of_a_point_that_goes(
    stored: Stored, daemon: StorageDaemon
) -> None:
    ids = stored.chain(2)
    branch = stored.take(ids[1])
    ids.append(stored.take(ids[1]))
    monitor = daemon.monitor(10.0)
    source = reading.open_sources(monitor, stored.settings, stored.repository, branch)["vda"]
    done = run(stored.engine, ids[1], branch)
    # Only unlinked, so what is read of it stays what it was.
    assert [removed.point for removed in done.removed] == [branch]
    assert f"Point {branch} is being read" in done.postponed[ids[1]]
    assert source.node in str(monitor.execute("query-named-block-nodes", flat=True))
    monitor.close()
    stored.assert_equal(ids)
    stored.assert_whole()


def test_readers_of_what_is_kept_go_on_and_begin_during_a_merge(
    stored: Stored, daemon: StorageDaemon
) -> None:
    ids = stored.chain(4)
    with Pruning(stored.engine, ids[1], ids[2]) as pruning:
        monitor = daemon.monitor(10.0)
        source = reading.open_sources(monitor, stored.settings, stored.repository, ids[3])["vda"]
        assert len(source.images) == 4
        with pytest.raises(PointBusy, match="being pruned"):
            reading.open_sources(monitor, stored.settings, stored.repository, ids[2])
        stored.assert_equal([ids[0], ids[3]])
        # One prune at a time, and it says who.
        with pytest.raises(PointBusy, match=pruning.task_id):
            run(stored.engine, ids[0])
        pruning.hurry()
        assert isinstance(pruning.join(), PruneResult)
        monitor.close()
    stored.assert_equal([ids[0], ids[3]])


@pytest.mark.parametrize("end", [Cancelled, Detached])
def test_one_that_is_stopped_in_a_merge_is_carried_on_by_the_next(
    stored: Stored, end: type[BaseException]
) -> None:
    ids = stored.chain(5)
    with Pruning(stored.engine, ids[1], ids[2]) as pruning:
        if end is Cancelled:
            pruning.cancel()
        else:
            pruning.stopping.set()
        assert isinstance(pruning.join(), end)
    stored.assert_equal([ids[0], ids[3], ids[4]])
    with pytest.raises(PointBusy, match="being pruned"):
        stored.repository.chain(stored.repository.find(ids[1]), "vda")
    run(stored.engine, rules=RetentionRules(last=9))
    assert stored.ids() == [ids[0], ids[3], ids[4]]
    stored.assert_equal(stored.ids())
    stored.assert_whole()


# -- damage and bad input --------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1, 2])
def test_damage_is_not_merged_into_what_looks_sound(stored: Stored, which: int) -> None:
    ids = stored.chain(4)
    image = stored.image(ids[which])
    content = bytearray(image.read_bytes())
    # The last cluster that has data of the guest's.
    at = len(content.rstrip(b"\0")) - 1
    content[at] ^= 0xFF
    image.write_bytes(content)
    before = {path: path.read_bytes() for path in image.parent.parent.rglob("*.qcow2")}
    outcome: BaseException | PruneResult
    try:
        outcome = run(stored.engine, ids[0], ids[1])
    except (Damaged, RepositoryUnusable) as error:
        outcome = error
    if isinstance(outcome, PruneResult):
        assert ids[which] in str(outcome.postponed)
        assert outcome.removed == ()
    assert {path: path.read_bytes() for path in before} == before
    assert not list(image.parent.parent.glob(f"*/{sidecar.PRUNING}"))


def test_too_little_room_is_said_with_both_numbers(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = stored.chain(3)
    monkeypatch.setattr(type(stored.repository), "free", lambda _: 1000)
    with pytest.raises(NoRoom, match=r"has 1000 bytes free, and merging .* may take \d{5,}"):
        run(stored.engine, ids[1])
    assert stored.ids() == ids
    stored.assert_equal(ids)


def test_bad_requests_are_refused(stored: Stored) -> None:
    ids = stored.chain(2)
    refused: list[tuple[type[BadInput], str, Callable[[], object]]] = [
        (UnknownPoint, "no point", lambda: run(stored.engine, "20200101T000000Z-00000000")),
        (
            UnknownPoint,
            "no points of domain",
            lambda: run(stored.engine, domain=str(uuid.uuid4()), rules=RetentionRules(last=1)),
        ),
    ]
    for error, match, call in refused:
        with pytest.raises(error, match=match) as caught:
            call()
        assert caught.value.mend
    partial = stored.repository.begin(stored.uuid, "20260102T000000Z-00000009", "<domain/>")
    assert partial.exists()
    with pytest.raises(UnknownPoint, match="not complete"):
        run(stored.engine, "20260102T000000Z-00000009")
    assert stored.ids() == ids
    assert os.path.exists(partial)
