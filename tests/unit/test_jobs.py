"""Following jobs over a scripted QEMU: every way one can end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.recorded import MODERN
from virtvault.errors import JobFailed, JobVanished, MonitorError, NotReachable
from virtvault.models import DiskProgress
from workers.jobs import Pace, cancel, dismiss, follow, listed

PACE = Pace(0.0, 0.0, 60.0)
ONE = {"job-a": "vda"}
TWO = {"job-a": "vda", "job-b": "vdb"}

Answer = dict[str, dict[str, Any]] | Exception


def job(offset: int, status: str = "running", length: int = 100, **more: Any) -> dict[str, Any]:
    return {"offset": offset, "len": length, "status": status, "paused": False, **more}


class ScriptedQemu:
    """A Monitor whose query-block-jobs follows a script; the last answer is given for ever."""

    capabilities = MODERN

    def __init__(self, *answers: Answer, refuse: frozenset[str] = frozenset()) -> None:
        self._answers: Iterator[Answer] = iter(answers)
        self._now: Answer = {}
        self._refuse = refuse
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.polls = 0
        self.waited: list[float] = []

    def execute(self, command: str, **arguments: Any) -> Any:
        if command != "query-block-jobs":
            self.commands.append((command, arguments))
            if command in self._refuse:
                raise MonitorError(f"refused {command}")
            return {}
        self.polls += 1
        self._now = next(self._answers, self._now)
        if isinstance(self._now, Exception):
            raise self._now
        return [{"device": name, **entry} for name, entry in self._now.items()]

    def wait(self, seconds: float) -> None:
        self.waited.append(seconds)

    def close(self) -> None:
        pass


def quiet(_: tuple[DiskProgress, ...]) -> None:
    pass


def test_jobs_that_conclude_whole_give_the_bytes_they_went_through() -> None:
    qemu = ScriptedQemu(
        {"job-a": job(10), "job-b": job(0)},
        {"job-a": job(100, "concluded"), "job-b": job(20)},
        {"job-a": job(100, "concluded"), "job-b": job(70, "concluded", 70)},
    )
    seen: list[tuple[DiskProgress, ...]] = []
    assert follow(qemu, TWO, PACE, seen.append) == {"vda": 100, "vdb": 70}
    assert seen[0] == (
        DiskProgress("vda", 10, 100, "running"),
        DiskProgress("vdb", 0, 100, "running"),
    )
    assert len(seen) == 3


def test_a_concluded_job_of_no_length_is_whole() -> None:
    assert follow(ScriptedQemu({"job-a": job(0, "concluded", 0)}), ONE, PACE, quiet) == {"vda": 0}


def test_jobs_of_others_do_not_count() -> None:
    qemu = ScriptedQemu(
        {"somebodys": job(0, "concluded", error="no"), "job-a": job(100, "concluded")}
    )
    assert follow(qemu, ONE, PACE, quiet) == {"vda": 100}


def test_a_job_that_is_not_listed_any_more_is_unknown_and_no_success() -> None:
    qemu = ScriptedQemu({"job-a": job(10), "job-b": job(99)}, {"job-a": job(100, "concluded")})
    with pytest.raises(JobVanished, match="job-b") as caught:
        follow(qemu, TWO, PACE, quiet)
    assert caught.value.mend


def test_an_error_is_quoted_with_its_disk() -> None:
    qemu = ScriptedQemu({"job-a": job(10, "concluded", error="No space left on device")})
    with pytest.raises(JobFailed, match="disk vda: No space left on device"):
        follow(qemu, ONE, PACE, quiet)


def test_of_jobs_that_end_together_the_cause_is_named_and_not_its_consequence() -> None:
    qemu = ScriptedQemu(
        {
            "job-a": job(10, "concluded", error="Operation canceled"),
            "job-b": job(20, "concluded", error="Input/output error"),
        }
    )
    with pytest.raises(JobFailed) as caught:
        follow(qemu, TWO, PACE, quiet)
    assert "disk vdb: Input/output error" in caught.value.message
    assert "vda" not in caught.value.message


def test_where_all_were_cancelled_all_are_named() -> None:
    cancelled = job(10, "concluded", error="Operation canceled")
    with pytest.raises(JobFailed, match=r"disk vda: .*; disk vdb: "):
        follow(ScriptedQemu({"job-a": cancelled, "job-b": cancelled}), TWO, PACE, quiet)


def test_a_job_that_ends_short_without_an_error_was_cancelled() -> None:
    with pytest.raises(JobFailed, match="disk vda ended at 25 of 100 bytes: somebody cancelled"):
        follow(ScriptedQemu({"job-a": job(25, "concluded")}), ONE, PACE, quiet)


def test_a_job_without_progress_for_the_stall_time_has_failed() -> None:
    qemu = ScriptedQemu({"job-a": job(25)})
    with pytest.raises(JobFailed, match=r"Disk vda: no byte moved for 0\.05 s"):
        follow(qemu, ONE, Pace(0.0, 0.0, 0.05), quiet)
    assert qemu.polls > 2


def test_a_paused_job_is_not_a_stalled_one() -> None:
    paused = {"job-a": job(25, "paused", paused=True)}
    qemu = ScriptedQemu(*[paused] * 50, {"job-a": job(100, "concluded")})
    assert follow(qemu, ONE, Pace(0.0, 0.0, 0.0), quiet) == {"vda": 100}


def test_a_disk_whose_target_stalls_is_found_while_the_others_move_on() -> None:
    qemu = ScriptedQemu(*[{"job-a": job(25), "job-b": job(number)} for number in range(90)])
    with pytest.raises(JobFailed, match=r"Disk vda: no byte moved for 0\.0005 s"):
        follow(qemu, TWO, Pace(0.0, 0.0, 0.0005), quiet)


def test_a_disk_that_is_done_is_not_a_stalled_one() -> None:
    moving = [{"job-a": job(100, "concluded"), "job-b": job(number)} for number in range(50)]
    both = {"job-a": job(100, "concluded"), "job-b": job(100, "concluded")}
    qemu = ScriptedQemu(*moving, both)
    assert follow(qemu, TWO, Pace(0.0, 0.0, 60.0), quiet) == {"vda": 100, "vdb": 100}


def test_a_libvirt_that_is_away_for_a_while_is_waited_for() -> None:
    away = NotReachable("libvirt is away.")
    qemu = ScriptedQemu({"job-a": job(10)}, away, away, {"job-a": job(100, "concluded")})
    seen: list[tuple[DiskProgress, ...]] = []
    assert follow(qemu, ONE, PACE, seen.append) == {"vda": 100}
    assert seen[1:3] == [(), ()]


def test_a_libvirt_that_stays_away_is_told() -> None:
    with pytest.raises(NotReachable):
        follow(ScriptedQemu(NotReachable("libvirt is away.")), ONE, Pace(0.0, 0.0, 0.05), quiet)


def test_what_the_listener_raises_ends_the_following_at_once() -> None:
    qemu = ScriptedQemu({"job-a": job(10)})

    def stop(_: tuple[DiskProgress, ...]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(qemu, ONE, PACE, stop)
    assert (qemu.polls, qemu.commands) == (1, [])


def test_the_poll_slows_down_to_its_longest_interval() -> None:
    moving = [{"job-a": job(number)} for number in range(10)]
    qemu = ScriptedQemu(*moving, {"job-a": job(100, "concluded")})
    follow(qemu, ONE, Pace(1.0, 4.0, 60.0), quiet)
    assert qemu.waited[:5] == [1.0, 1.5, 2.25, 3.375, 4.0]
    assert qemu.waited[-1] == 4.0


def test_cancel_asks_each_running_job_once_and_waits_for_its_end() -> None:
    qemu = ScriptedQemu(
        {"job-a": job(10), "job-b": job(5, "concluded"), "other": job(1)},
        {"job-a": job(10), "other": job(1)},
        {"job-a": job(10, "concluded"), "other": job(1)},
    )
    assert cancel(qemu, TWO, 60.0)
    assert qemu.commands == [("block-job-cancel", {"device": "job-a", "force": True})]


def test_cancel_says_where_a_job_does_not_end_in_time() -> None:
    assert not cancel(ScriptedQemu({"job-a": job(10)}), ONE, 0.0)


def test_cancel_of_a_job_that_is_just_concluding_looks_again() -> None:
    qemu = ScriptedQemu(
        {"job-a": job(10)},
        {"job-a": job(10, "concluded")},
        refuse=frozenset({"block-job-cancel"}),
    )
    assert cancel(qemu, ONE, 60.0)


def test_dismiss_takes_only_ours_off_the_list() -> None:
    qemu = ScriptedQemu({"job-a": job(10, "concluded"), "other": job(1, "concluded")})
    dismiss(qemu, ONE)
    assert qemu.commands == [("job-dismiss", {"id": "job-a"})]
    assert set(listed(qemu)) == {"job-a", "other"}
