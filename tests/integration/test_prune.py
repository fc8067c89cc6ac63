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
from tests.integration.scenes import (
    VDA,
    Boot,
    TakePoints,
    give_new_content,
    qemu_img,
    syncs,
    until,
)
from tests.integration.stored import SIZE, Stored
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
from workers import job_control, merge, reading
from workers.engine import Engine, Ties, tag_of
from workers.jobs import Detached
from workers.merge import Damaged
from workers.prune import prune
from workers.repository import manifest, sidecar
from workers.repository.directory import LOCKS
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
def test_points_that_are_being_read_stay(stored: Stored, daemon: StorageDaemon, which: int) -> None:
    """The one whose image takes in the others, and one between; what is around them may go."""
    ids = stored.chain(4)
    monitor = daemon.monitor(10.0)
    reading.open_sources(monitor, stored.settings, stored.repository, ids[which])
    done = run(stored.engine, *ids[1:3])
    # Nor does the one that is read get the image of another.
    stay = ids[1 : which + 1]
    assert done.postponed == dict.fromkeys(stay, merge.being_read(ids[which]))
    assert [removed.point for removed in done.removed] == ids[which + 1 : 3]
    stored.assert_equal([ids[0], *stay, ids[3]])
    monitor.close()
    daemon.end()
    assert len(run(stored.engine, *stay).removed) == len(stay)
    stored.assert_equal([ids[0], ids[3]])
    stored.assert_whole()


def test_a_point_that_is_being_read_gets_no_other_image(
    stored: Stored, daemon: StorageDaemon
) -> None:
    """The reader's lock is on the image it opened: on another of that name it has none, and the
    prune after next would merge into what it still reads."""
    ids = stored.chain(4)
    monitor = daemon.monitor(10.0)
    reading.open_sources(monitor, stored.settings, stored.repository, ids[2])
    done = run(stored.engine, ids[1])
    assert done.postponed == {ids[1]: merge.being_read(ids[2])}
    assert run(stored.engine, ids[2]).postponed
    monitor.close()
    stored.assert_equal(ids)


def test_a_point_that_nobody_needs_stays_while_it_is_read(
    stored: Stored, daemon: StorageDaemon
) -> None:
    old = stored.take()
    new = stored.take()
    monitor = daemon.monitor(10.0)
    reading.open_sources(monitor, stored.settings, stored.repository, old)
    assert run(stored.engine, old).postponed == {old: merge.being_read(old)}
    monitor.close()
    daemon.end()
    assert len(run(stored.engine, old).removed) == 1
    stored.assert_equal([new])


def test_nothing_is_merged_below_a_reader_of_a_point_that_goes(
    stored: Stored, daemon: StorageDaemon
) -> None:
    ids = stored.chain(2)
    branch = stored.take(ids[1])
    ids.append(stored.take(ids[1]))
    monitor = daemon.monitor(10.0)
    reading.open_sources(monitor, stored.settings, stored.repository, branch)
    done = run(stored.engine, ids[1], branch)
    assert done.removed == ()
    assert done.postponed[branch] == merge.being_read(branch)
    assert "both stand on" in done.postponed[ids[1]]
    monitor.close()
    stored.assert_equal([*ids, branch])
    stored.assert_whole()


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
        # Its lock is on the image that it opened: that one is not replaced under it.
        outcome = pruning.join()
        assert isinstance(outcome, PointBusy)
        assert merge.being_read(ids[3]) in outcome.message
    opened = stored.image(ids[3]).stat().st_ino
    with pytest.raises(PointBusy):
        run(stored.engine, rules=RetentionRules(last=9))
    assert stored.image(ids[3]).stat().st_ino == opened
    stored.assert_equal([ids[0], ids[3]])
    monitor.close()
    daemon.end()
    run(stored.engine, rules=RetentionRules(last=9))
    assert stored.ids() == [ids[0], ids[3]]
    stored.assert_equal([ids[0], ids[3]])
    stored.assert_whole()


def test_a_merge_is_paused_resumed_and_hurried(stored: Stored) -> None:
    ids = stored.chain(3)
    with Pruning(stored.engine, ids[1]) as pruning:
        assert "paused" in job_control.pause(stored.engine, pruning.task_id)
        directory = daemon_of(stored.settings.runtime_dir, "prune", tag_of(pruning.task_id))
        monitor = directory.monitor(10.0, "control")
        until(
            lambda: monitor.execute("query-block-jobs")[0]["status"] == "paused", "the job to stand"
        )
        monitor.close()
        assert "without a speed limit" in job_control.set_speed(stored.engine, 0, pruning.task_id)
        assert "running" in job_control.resume(stored.engine, pruning.task_id)
        assert isinstance(pruning.join(), PruneResult)
    stored.assert_equal([ids[0], ids[2]])


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


# -- what others have put there --------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["newer", "cut off"])
def test_what_an_unreadable_point_stands_on_stays(stored: Stored, damage: str) -> None:
    """Its manifest may be mended, or is that of a later version."""
    ids = stored.chain(3)
    other = stored.take()
    path = stored.repository.directory(stored.uuid, ids[2]) / manifest.FILE
    text = path.read_text()
    path.write_text(text.replace('"schema_version": 2', '"schema_version": 3') if damage == "newer"
                    else text[:100])  # fmt: skip
    done = run(stored.engine, rules=RetentionRules(last=1))
    assert f"point {ids[2]} stands on it" in done.postponed[ids[1]]
    path.write_text(text)
    stored.assert_equal([ids[1], ids[2], other])


def test_a_point_that_was_protected_since_it_was_named_stays(stored: Stored) -> None:
    ids = stored.chain(3)
    with Pruning(stored.engine, ids[0]) as pruning:
        pruning.stopping.set()
        assert isinstance(pruning.join(), Detached)
    # The first is lost by now; the second is asked for by the same task's next delivery.
    directory = stored.repository.directory(stored.uuid, ids[1])
    journal = stored.engine.journal
    begun = journal.read(pruning.task_id)
    assert begun is not None
    sidecar.write(directory, sidecar.PROTECTED, {"reason": "audit"})
    with pytest.raises(InvalidRequest, match="protected: audit"):
        run(stored.engine, ids[0], ids[1], task_id=pruning.task_id)
    assert ids[1] in stored.ids()
    stored.assert_equal(ids[1:])


def test_no_header_makes_a_merge_open_another_file(stored: Stored, workdir: Path) -> None:
    ids = stored.chain(3)
    outside = workdir / "outside.raw"
    outside.write_bytes(bytes(SIZE))
    image = stored.image(ids[1])
    length = image.stat().st_size
    image.unlink()
    options = f"data_file={outside},backing_file=../{ids[0]}/vda.qcow2"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-o", options, image, str(SIZE))
    os.truncate(image, length)
    done = run(stored.engine, ids[1])
    assert "it has its data in another file" in done.postponed[ids[1]]
    assert outside.read_bytes() == bytes(SIZE)


def test_no_mark_or_link_makes_a_prune_write_elsewhere(stored: Stored, workdir: Path) -> None:
    ids = stored.chain(3)
    directory = stored.repository.directory(stored.uuid, ids[1])
    outside = workdir / "images"
    outside.mkdir()
    victim = outside / "vda.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", victim, str(SIZE))
    before = victim.read_bytes()
    entry = {"target": "vda", "top": ids[2], "removed": ["../../../../images", ids[1]],
             "below": ids[0], "losing": [], "expected": {}, "digests": ""}  # fmt: skip
    sidecar.write(directory, sidecar.PRUNING, {"state": "merging", "merges": {"vda": entry}})
    with pytest.raises(RepositoryUnusable, match="does not say what was begun"):
        run(stored.engine, ids[0])
    sidecar.drop(directory, sidecar.PRUNING)
    switch = {"disks": {"vda": {"file": "../../../../images/vda.qcow2", "backing_file":
              f"../{ids[0]}/vda.qcow2"}}, "merged": []}  # fmt: skip
    sidecar.write(directory, sidecar.SWITCH, switch)
    with pytest.raises(RepositoryUnusable, match=r"switch\.json cannot be used"):
        stored.repository.find(ids[1])
    sidecar.drop(directory, sidecar.SWITCH)
    stored.image(ids[1]).unlink()
    stored.image(ids[1]).symlink_to(victim)
    assert run(stored.engine, ids[1]).removed == ()
    lock = stored.repository.path / LOCKS / f"{stored.uuid}.prune"
    lock.unlink()
    lock.symlink_to(victim)
    with pytest.raises(RepositoryUnusable):
        run(stored.engine, ids[1])
    assert victim.read_bytes() == before


def test_a_chain_does_not_become_longer_than_tools_can_open(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = stored.chain(4)
    parents = stored.repository.parents(stored.uuid, "vda")
    assert not any(parent.trouble for parent in parents.values())
    monkeypatch.setattr("workers.repository.directory.LONGEST", 4)
    parents = stored.repository.parents(stored.uuid, "vda")
    assert parents[ids[3]].trouble.startswith("has a chain of 4 images")
    assert not parents[ids[2]].trouble
    # It can be read, and pruned: then it is shorter.
    stored.assert_equal(ids)
    run(stored.engine, ids[1])
    assert not stored.repository.parents(stored.uuid, "vda")[ids[3]].trouble
