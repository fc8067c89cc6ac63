"""The journal: what was written is there after a kill, and a hold ends with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from virtvault.errors import DomainBusy, InvalidRequest
from workers import journal as journal_module
from workers.journal import HeldElsewhere, Journal, Run, durable_write


def run_of(task: str, started: str = "2026-01-01T00:00:00Z") -> Run:
    return Run(
        task_id=task,
        kind="backup",
        request={"domain": "web"},
        domain="web",
        uuid="u",
        repository="main",
        point="p",
        started=started,
    )


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path))


def test_a_run_is_read_as_it_was_written_by_whoever_asks(journal: Journal, tmp_path: Path) -> None:
    run = run_of("t1")
    run.phase, run.draft, run.error = "copying", {"disks": [{"target": "vda"}]}, "oh"
    run.exports = [{"name": "vda", "socket": "/s", "image": "/i"}]
    journal.write(run)
    assert Journal(str(tmp_path)).read("t1") == run
    assert journal.read("t2") is None


def test_all_runs_are_listed_oldest_first_and_forgotten_ones_are_not(journal: Journal) -> None:
    assert journal.all() == []
    for task, started in (("b", "2026-01-02"), ("a", "2026-01-03"), ("c", "2026-01-01")):
        journal.write(run_of(task, started))
    assert [run.task_id for run in journal.all()] == ["c", "b", "a"]
    journal.forget("b")
    journal.forget("b")
    assert [run.task_id for run in journal.all()] == ["c", "a"]


def test_a_wish_is_no_run_and_outlives_what_is_undone_of_its_run(journal: Journal) -> None:
    journal.write(run_of("t1"))
    journal.wishes("t1").touch()
    assert [run.task_id for run in journal.all()] == ["t1"]
    journal.forget("t1")
    assert journal.wishes("t1").exists()
    assert journal.all() == []


@pytest.mark.parametrize("task", ["", "..", ".hidden", "a/b", "../x", "a\n", "a b", "x" * 151])
def test_a_task_id_that_could_be_another_file_is_refused(journal: Journal, task: str) -> None:
    for use in (journal.read, journal.forget, journal.wishes):
        with pytest.raises(InvalidRequest, match="task id") as caught:
            use(task)
        assert caught.value.mend


def test_a_write_is_flushed_before_it_takes_the_old_ones_place_and_the_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that a power cut at any moment leaves the old or the new content in."""
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        order.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def replaced(source: Path, destination: Path) -> None:
        order.append(f"replace {source.name}")
        replace(source, destination)

    monkeypatch.setattr(journal_module.os, "fsync", synced)
    monkeypatch.setattr(journal_module.os, "replace", replaced)
    durable_write(tmp_path / "a.json", "new")
    assert order == ["fsync .a.json.new", "replace .a.json.new", f"fsync {tmp_path.name}"]
    assert (tmp_path / "a.json").read_text() == "new"


def test_a_write_that_fails_leaves_the_old_content(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of("t1")
    journal.write(run)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        journal.write(Run(**{**run.__dict__, "phase": "copied"}))
    assert [found.phase for found in journal.all()] == ["planned"]


def test_a_key_is_held_by_one_task_at_a_time_and_the_other_is_told_which(
    journal: Journal, tmp_path: Path
) -> None:
    other = Journal(str(tmp_path))
    with journal.hold("uuid", "first"):
        with pytest.raises(HeldElsewhere, match="first") as caught, other.hold("uuid", "second"):
            pytest.fail("held twice")
        assert caught.value.holder == "first"
        assert isinstance(caught.value, DomainBusy)
        assert "virtvault cancel first" in caught.value.mend
        with other.hold("another", "second"):
            pass
    with other.hold("uuid", "second"):
        pass


def test_a_second_delivery_sees_its_own_task_as_the_holder(journal: Journal) -> None:
    seen: list[str] = []

    def deliver() -> None:
        try:
            with journal.hold("uuid", "task"):
                seen.append("held")
        except HeldElsewhere as held:
            seen.append(held.holder)

    with journal.hold("uuid", "task"):
        thread = threading.Thread(target=deliver)
        thread.start()
        thread.join(10)
    assert seen == ["task"]


def test_a_shorter_task_id_leaves_nothing_of_the_longer_one_before(journal: Journal) -> None:
    with journal.hold("uuid", "a-long-task-id"):
        pass
    with journal.hold("uuid", "b"), pytest.raises(HeldElsewhere) as caught:  # noqa: SIM117
        with journal.hold("uuid", "c"):
            pass
    assert caught.value.holder == "b"


def test_a_hold_is_let_go_by_an_error_and_by_the_end_of_its_process(
    journal: Journal, tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError), journal.hold("uuid", "failing"):
        raise ZeroDivisionError
    code = (
        "import sys; from workers.journal import Journal\n"
        "with Journal(sys.argv[1]).hold('uuid', 'child'):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(HeldElsewhere, match="child"), journal.hold("uuid", "parent"):
            pytest.fail("held twice")
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        with journal.hold("uuid", "parent"):
            pass
