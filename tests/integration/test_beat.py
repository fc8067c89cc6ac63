"""What beat dispatches, and what it tells of slots: real Redis, made-up hypervisors and time."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from beat.leader import who_leads
from tests.integration.beat_stage import DAY, HOUR, MONDAY, Stage, policy, uuids
from tests.lab.redis_server import RedisServer
from virtvault import queues
from virtvault.errors import DomainBusy, JobFailed, UnknownDisk
from virtvault.models import FullEvery, Limits, RetentionRules, Schedule
from virtvault.runs import RunRecord

A, B, C = uuids(3)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(Path("/var/tmp") / f"vvbeat-{tmp_path_factory.mktemp('r').parent.name}") as s:
        yield s


@pytest.fixture
def stage(redis_server: RedisServer, tmp_path: Path) -> Iterator[Stage]:
    redis_server.flush()
    made = Stage(redis_server, tmp_path)
    yield made
    made.close()


def states(stage: Stage) -> list[tuple[str, str, int]]:
    return [(s["slot"][5:16], s["state"], s["attempt"]) for s in stage.slots()]


def test_each_slot_becomes_one_task_on_its_hypervisor(stage: Stage) -> None:
    stage.apply(
        policy(
            schedule=Schedule(cron="0 * * * *", spread=0),
            disks=("vda",),
            speed=7,
            freeze="never",
            full_every=FullEvery(points=5, days=2),
            verify=Schedule(cron="30 1 * * *", spread=0),
            boot_test=Schedule(cron="45 1 * * *", spread=0),
            prune=Schedule(cron="50 1 * * *", spread=0),
            retention=RetentionRules(last=3),
        )
    )
    stage.host("h1", [A])
    beat = stage.beat()
    beat.settle()
    assert stage.sent("h1") == []  # nothing is due at once
    stage.now = MONDAY + HOUR
    beat.settle()
    beat.settle()
    ((origin, request),) = stage.sent("h1")
    assert str(origin) == f"p/backup/{A}/2026-06-01T01:00:00.000Z/1"
    assert request["domain"] == A and request["repository"] == "main"
    assert (request["sync"], request["disks"], request["speed"]) == ("auto", ["vda"], 7)
    assert (request["freeze"], request["full_points"], request["full_days"]) == ("never", 5, 2)
    run = RunRecord.read(stage.redis, origin.task_id)
    assert run is not None and run.state == "queued" and run.queue == "hv.h1"
    (slot,) = stage.slots()
    assert (slot["state"], slot["task_id"], slot["host"]) == ("dispatched", origin.task_id, "h1")
    assert (slot["domain"], slot["repository"]) == (f"vm-{A[-4:]}", "main")
    stage.end(origin.task_id)
    stage.now += HOUR - 1
    beat.settle()
    sent = {origin.entry.kind: request for origin, request in stage.sent("h1")[1:]}
    assert sent.keys() == {"verify", "boot_test", "prune"}
    assert sent["verify"]["domain"] == A and not sent["verify"]["boot"]
    assert sent["boot_test"]["boot"] and sent["boot_test"]["repository"] == "main"
    assert sent["prune"]["rules"]["last"] == 3 and sent["prune"]["domain"] == A
    assert RunRecord.read(stage.redis, origin.task_id).state == "ended"  # type: ignore[union-attr]


def test_a_beat_that_was_down_for_three_days_catches_up_once(stage: Stage) -> None:
    stage.apply(policy())
    stage.host("h1", [A, B])
    stage.beat().settle()
    stage.depose()
    stage.now += 3 * DAY + 60
    stage.beat().settle()
    assert [str(o.slot - MONDAY) for o, _ in stage.sent("h1")] == [str(3 * DAY)] * 2
    missed = [s for s in stage.slots() if s["state"] == "missed"]
    assert [s["slot"] for s in missed] == ["2026-06-03T23:00:00.000Z"] * 2
    assert "71 were missed" in missed[0]["reason"]


def test_a_domain_whose_last_backup_is_still_at_work_is_skipped(stage: Stage) -> None:
    stage.apply(policy())
    stage.host("h1", [A])
    beat = stage.beat()
    beat.settle()
    for _ in range(2):
        stage.now += HOUR
        beat.settle()
    ((origin, _),) = stage.sent("h1")
    assert states(stage) == [("06-01T01:00", "dispatched", 1), ("06-01T02:00", "skipped", 1)]
    assert origin.task_id in stage.slots()[1]["reason"]
    stage.end(origin.task_id)
    stage.now += HOUR
    beat.settle()
    assert states(stage)[2:] == [("06-01T03:00", "dispatched", 1)]


def test_what_failed_is_tried_again_with_backoff_within_its_window(stage: Stage) -> None:
    stage.apply(policy(schedule=Schedule(cron="0 2 * * *", window=600, spread=0)))
    stage.host("h1", [A])
    beat = stage.beat()
    beat.settle()
    pauses, last = [], stage.now
    stage.now = MONDAY + 2 * HOUR
    stage.redis.delete(queues.host_queue("h1"))
    beat.settle()
    # The first backup of a new domain has been ahead of the schedule.
    stage.end(stage.sent("h1")[0][0].task_id)
    stage.now = last = MONDAY + DAY + 2 * HOUR
    before = len(stage.slots())
    beat.settle()
    for _ in range(200):
        open_runs = [m.decode() for m in stage.redis.smembers(queues.OPEN_RUNS_KEY)]
        if open_runs:
            pauses.append(stage.now - last)
            last = stage.now
            stage.end(open_runs[0], JobFailed("The job ended with EIO.", "Look."))
        beat.settle()
        stage.now += 10
    assert len(pauses) == 4 and pauses[0] == 0
    for pause, least in zip(pauses[1:], (60, 120, 240), strict=True):
        assert least <= pause <= least * 1.25 + 10
    told = stage.slots()[before:]
    assert [(s["state"], s["attempt"]) for s in told] == [
        *(("dispatched", n) for n in (1, 2, 3, 4)),
        ("failed", 4),
    ]
    assert "EIO" in told[-1]["reason"] and len({s["slot"] for s in told}) == 1


def test_what_cannot_succeed_is_not_tried_again(stage: Stage) -> None:
    stage.apply(policy())
    stage.host("h1", [A])
    beat = stage.beat()
    beat.settle()
    stage.now += HOUR
    beat.settle()
    stage.end(stage.sent("h1")[0][0].task_id, UnknownDisk("There is no disk vdx.", "Mend it."))
    beat.settle()
    stage.now += HOUR - 1
    beat.settle()
    assert states(stage) == [("06-01T01:00", "dispatched", 1), ("06-01T01:00", "failed", 1)]
    assert "vdx" in stage.slots()[1]["reason"]


def test_a_domain_that_others_are_at_work_on_all_the_time_is_skipped_in_the_end(
    stage: Stage,
) -> None:
    stage.apply(policy(schedule=Schedule(every=3600, window=150, spread=0)))
    stage.host("h1", [A])
    beat = stage.beat()
    beat.settle()
    stage.now += HOUR
    for _ in range(20):
        beat.settle()
        for member in stage.redis.smembers(queues.OPEN_RUNS_KEY):
            stage.end(member.decode(), DomainBusy("Domain vm is held by task t.", "Wait."))
        stage.now += 20
    assert [(s["state"], s["attempt"]) for s in stage.slots()] == [
        ("dispatched", 1),
        ("dispatched", 2),
        ("skipped", 3),
    ]
    assert "held by task t" in stage.slots()[-1]["reason"]


def test_limits_hold_and_the_most_overdue_of_the_highest_priority_goes_first(
    stage: Stage,
) -> None:
    low = policy("low", rpo=7200, limits=Limits(total=2))
    high = policy("high", repository="other", priority=5, limits=Limits(per_host=1))
    stage.apply(low, high, limits=Limits(total=4, per_host=2))
    stage.host("h1", uuids(5))
    stage.host("h2", uuids(5, 5))
    beat = stage.beat()
    beat.settle()
    # Of the domains of low, the later ones have been backed up the longer ago.
    for number, uuid in enumerate(uuids(10)):
        beat.board.lasts[f"low/backup/{uuid}"] = (MONDAY, MONDAY - number)
    stage.now += HOUR
    order: list[tuple[str, str]] = []
    done: set[str] = set()
    for _ in range(40):
        beat.settle()
        open_runs = [m.decode() for m in stage.redis.smembers(queues.OPEN_RUNS_KEY)]
        origins = [stage.origin(task_id) for task_id in open_runs]
        hosts = ["h1" if o.entry.uuid in uuids(5) else "h2" for o in origins]
        assert len(origins) <= 4 and max(map(hosts.count, ("h1", "h2")), default=0) <= 2
        assert [o.entry.policy for o in origins].count("low") <= 2
        for host in ("h1", "h2"):
            mine = [o for o, h in zip(origins, hosts, strict=True) if h == host]
            assert [o.entry.policy for o in mine].count("high") <= 1
        new = sorted(set(open_runs) - done)
        order += [stage.origin(task_id).entry[::2] for task_id in new]  # type: ignore[misc]
        done |= set(new)
        if not open_runs:
            break
        stage.end(sorted(open_runs)[0])
        stage.now += 1
    assert len(order) == 20 and len(set(order)) == 20
    low_order = [uuid for name, uuid in order if name == "low"]
    assert low_order[:2] != list(uuids(2))
    # On each hypervisor: the longest past its RPO first, but where high's backup had the domain.
    for own in (uuids(5), uuids(5, 5)):
        mine = [own.index(uuid) for uuid in low_order if uuid in own]
        assert mine.index(4) < mine.index(0)


def test_a_hypervisor_that_is_gone_gets_nothing_until_it_is_back(stage: Stage) -> None:
    stage.apply(policy())
    stage.host("h1", [A])
    stage.host("h2", [B])
    beat = stage.beat()
    beat.settle()
    stage.gone("h1")
    stage.now += HOUR
    beat.settle()
    assert (len(stage.sent("h1")), len(stage.sent("h2"))) == (0, 1)
    stage.now += 60
    stage.beat_of("h1")
    beat.settle()
    assert len(stage.sent("h1")) == 1
    stage.end(stage.sent("h1")[0][0].task_id)
    beat.settle()
    stage.gone("h1")
    stage.now += 2 * HOUR
    beat.settle()
    stage.now += HOUR
    beat.settle()
    missed = [s for s in stage.slots() if s["state"] == "missed" and s["uuid"] == A]
    assert "h1 was not heard of" in missed[-1]["reason"]


def test_the_runs_of_a_hypervisor_that_is_gone_for_long_take_no_room_from_others(
    stage: Stage,
) -> None:
    stage.apply(policy(every=86_400), limits=Limits(total=1))
    stage.host("h1", [A])
    beat = stage.beat()
    beat.settle()
    stage.now += 1000
    beat.settle()
    ((origin, _),) = stage.sent("h1")
    stage.gone("h1")
    stage.host("h2", [B])
    beat.settle()
    stage.now += 3500
    stage.beat_of("h2")
    beat.settle()
    assert stage.sent("h2") == []  # its QEMU may be at work
    stage.now += 200
    beat.settle()
    assert len(stage.sent("h2")) == 1
    (failed,) = [s for s in stage.slots() if s["state"] == "failed"]
    assert failed["task_id"] == origin.task_id and "h1 was not heard of" in failed["reason"]
    # It is back, and goes on with the run: that counts again, and its end is seen.
    stage.beat_of("h1")
    run = RunRecord.read(stage.redis, origin.task_id)
    assert run is not None
    stage.hold(run)
    stage.now += 20
    beat.settle()
    assert len(beat.board.flights.works) == 2
    stage.end(origin.task_id)
    beat.settle()
    assert len(beat.board.flights.works) == 1


@pytest.mark.parametrize(("late", "state"), [("skip", "skipped"), ("run", "dispatched")])
def test_what_could_not_begin_in_its_window(stage: Stage, late: str, state: str) -> None:
    stage.apply(policy(schedule=Schedule(every=3600, window=600, spread=0), late=late))
    stage.host("h1", [A])
    beat = stage.beat()
    beat.settle()
    stage.gone("h1")
    stage.now += HOUR
    beat.settle()
    stage.now += 601
    beat.settle()
    stage.beat_of("h1")
    beat.settle()
    (slot,) = stage.slots()
    assert slot["state"] == state
    if late == "skip":
        assert "window ended" in slot["reason"] and "h1 was not heard of" in slot["reason"]


def test_a_domain_that_has_moved_is_backed_up_where_it_is_now(stage: Stage) -> None:
    stage.apply(policy())
    stage.host("h1", [A])
    stage.host("h2", [])
    beat = stage.beat()
    beat.settle()
    stage.host("h2", [A])
    stage.host("h1", [A], state="shut off")
    stage.now += HOUR
    beat.settle()
    assert (len(stage.sent("h1")), len(stage.sent("h2"))) == (0, 1)


def test_a_domain_that_two_hypervisors_run_is_left_alone(stage: Stage) -> None:
    stage.apply(policy(late="skip", schedule=Schedule(every=3600, window=60, spread=0)))
    stage.host("h1", [A])
    stage.host("h2", [A])
    beat = stage.beat()
    beat.settle()
    stage.host("h1", [A], state="paused")
    stage.now += HOUR
    beat.settle()
    assert not stage.sent("h1") and not stage.sent("h2")
    stage.gone("h2")  # now it can be told
    beat.settle()
    assert len(stage.sent("h1")) + len(stage.sent("h2")) <= 1


def test_ten_thousand_new_domains_are_no_stampede(stage: Stage) -> None:
    monthly = Schedule(cron="0 3 1 * *", spread=0)
    stage.now += DAY  # the month's slot has passed
    stage.apply(policy(schedule=monthly), limits=Limits(total=50))
    stage.host("h1", uuids(10_000))
    beat = stage.beat()
    beat.settle()
    assert stage.ids("h1").total() == 0
    due = stage.redis.zrange(f"{queues.BEAT_PREFIX}due", 0, -1, withscores=True)
    assert len(due) == 10_000
    # Each has its first backup within the quarter of an hour, evenly spread.
    assert all(stage.now < at <= stage.now + 900 for _, at in due)
    assert max(sum(1 for _, at in due if at // 60 == m) for m in {at // 60 for _, at in due}) < 900
    for _ in range(2):
        stage.now += 450
        beat.settle()
        assert stage.ids("h1").total() == 50
    assert len(beat.board.waiting.works) == 9_950


def test_a_changed_policy_changes_only_what_differs(stage: Stage) -> None:
    stage.apply(policy("a"), policy("b", repository="other", every=7200))
    stage.host("h1", [A])
    beat = stage.beat()
    beat.settle()
    key = f"{queues.BEAT_PREFIX}due"
    before = dict(stage.redis.zrange(key, 0, -1, withscores=True))
    stage.now += 60
    stage.apply(
        policy("a"), policy("b", repository="other", every=1800), policy("c", repository="x")
    )
    beat.settle()
    after = dict(stage.redis.zrange(key, 0, -1, withscores=True))
    name = {n: f"{n}/backup/{A}".encode() for n in "abc"}
    assert after[name["a"]] == before[name["a"]]
    assert after[name["b"]] == MONDAY + 1800 and name["c"] in after
    stage.apply(policy("a", enabled=False))
    beat.settle()
    assert stage.redis.zcard(key) == 0
    stage.now += DAY
    beat.settle()
    assert stage.sent("h1") == []


def test_the_clock_may_be_set_either_way_and_no_slot_runs_twice(stage: Stage) -> None:
    stage.apply(policy())
    stage.host("h1", [A])
    beat = stage.beat()
    beat.settle()

    def at(hours: float) -> None:
        stage.now = MONDAY + hours * HOUR
        beat.settle()
        for task_id in stage.redis.smembers(queues.OPEN_RUNS_KEY):
            stage.end(task_id.decode())
        beat.settle()

    for hours in (1, 5, 1.2, 2, 3, 4, 4.9, 5.1, 6, 5.5, 6.2, 7):
        at(hours)
        stage.now += 60
        beat.settle()
    slots = sorted((o.slot - MONDAY) / HOUR for o, _ in stage.sent("h1"))
    assert slots == [1, 2, 3, 4, 5, 6, 7]


def test_rounds_are_sent_by_the_leader_alone(stage: Stage) -> None:
    first, second = stage.beat(), stage.beat()
    for _ in range(45):
        first.tick()
        second.tick()
        stage.redis.delete(*map(queues.round_key, (queues.SWEEP, queues.WATCH)))  # it has begun
        stage.now += 1
    found = [json.loads(m)["headers"]["task"] for m in stage.redis.lrange("central", 0, -1)]
    assert found.count(queues.SWEEP) == 5 and found.count(queues.WATCH) == 3
    assert first.leads and not second.leads
    assert "since 2026-06-01T00:00:00Z" in who_leads(stage.redis)
    first.close()
    second.tick()
    assert second.leads
