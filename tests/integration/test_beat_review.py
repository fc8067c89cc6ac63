"""What may befall a fleet's schedule beyond one fault at a time: nothing is lost without a word."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from beat.entries import moment
from tasks.sweep import sweep
from tests.integration.beat_stage import DAY, HOUR, Stage, policy, uuids
from tests.lab.redis_server import RedisServer
from virtvault import queues
from virtvault.connection import Connection
from virtvault.errors import NotReachable, UnknownDisk
from virtvault.models import Limits, Schedule
from virtvault.runs import RunRecord

A, B, C = uuids(3)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(Path("/var/tmp") / f"vvbeat-{tmp_path_factory.mktemp('v').parent.name}") as s:
        yield s


@pytest.fixture
def stage(redis_server: RedisServer, tmp_path: Path) -> Iterator[Stage]:
    redis_server.flush()
    made = Stage(redis_server, tmp_path)
    yield made
    made.close()


def last_of(stage: Stage, state: str) -> list[dict[str, Any]]:
    return [slot for slot in stage.slots() if slot["state"] == state]


def test_a_run_whose_end_nobody_can_tell_any_more_does_not_block_its_domain(stage: Stage) -> None:
    """All beats were away until its result, which is kept for a week, was gone."""
    stage.apply(policy())
    stage.host("h1", [A])
    stage.beat().settle()
    stage.now += HOUR
    stage.beats[0].settle()
    ((origin, _),) = stage.sent("h1")
    run = RunRecord.read(stage.redis, origin.task_id)
    assert run is not None
    replace(run, state="ended").write(stage.redis)  # by the sweep, which saw its result
    stage.depose()
    stage.now += 8 * DAY
    stage.beat_of("h1")
    fresh = stage.beat()
    for _ in range(8):
        fresh.settle()
        stage.now += 30
    assert len(stage.sent("h1")) == 2, stage.slots()


def test_a_flush_gives_no_living_hypervisor_up_and_no_room_away(stage: Stage) -> None:
    stage.apply(policy(every=int(DAY)), limits=Limits(total=1))
    stage.host("h1", [A, B])
    beat = stage.beat()
    beat.settle()
    stage.now += DAY
    stage.beat_of("h1")
    beat.settle()
    assert stage.ids("h1").total() == 1
    stage.now += 2 * HOUR  # a long one
    stage.beat_of("h1")
    beat.settle()
    stage.server.flush()
    stage.now += 1
    beat.settle()
    stage.now += 11
    beat.settle()
    assert last_of(stage, "failed") == []
    stage.tell("h1")
    beat.settle()
    assert len(beat.board.flights.works) == 1 and stage.ids("h1").total() == 0


def test_what_waits_survives_a_moment_in_which_no_hypervisor_has_the_domain(stage: Stage) -> None:
    """Migrated: its old hypervisor told first, and the night's backup waited for room."""
    stage.apply(policy(every=int(DAY)), limits=Limits(total=1))
    stage.host("h1", [A, B])
    stage.host("h2", [])
    beat = stage.beat()
    beat.settle()
    stage.now += DAY
    for host in ("h1", "h2"):
        stage.beat_of(host)
    beat.settle()
    ((first, _),) = stage.sent("h1")
    (waits,) = {A, B} - {first.entry.uuid}
    stage.host("h1", [first.entry.uuid])
    beat.settle()
    stage.host("h2", [waits])
    beat.settle()
    stage.end(first.task_id)
    for _ in range(10):
        stage.now += 120
        for host in ("h1", "h2"):
            stage.beat_of(host)
        beat.settle()
    assert [origin.entry.uuid for origin, _ in stage.sent("h2")] == [waits]


def test_new_policies_reach_domains_that_a_dead_hypervisor_says_it_runs(stage: Stage) -> None:
    stage.apply(policy("old"))
    stage.host("h1", [A])
    beat = stage.beat()
    beat.settle()
    stage.gone("h1")
    stage.host("h2", [A])
    beat.settle()
    stage.apply(policy("new"))
    for _ in range(3):
        stage.now += HOUR
        stage.beat_of("h2")
        beat.settle()
    assert {origin.entry.policy for origin, _ in stage.sent("h2")} >= {"new"}


def _lost(stage: Stage, **more: Any) -> tuple[Any, str]:
    """A beat after a flush that took the message of A's slot with it."""
    stage.apply(policy(schedule=Schedule(every=int(DAY), window=3600, spread=0), **more))
    stage.host("h1", [A])
    beat = stage.beat()
    beat.settle()
    stage.now += DAY
    stage.beat_of("h1")
    beat.settle()
    (slot,) = [s for s in stage.slots() if s["slot"] == moment(stage.now)]
    assert stage.said is not None
    stage.said[f"p/backup/{A}"] = slot
    stage.depose()
    stage.server.flush()
    stage.applied -= 1
    stage.apply(policy(schedule=Schedule(every=int(DAY), window=3600, spread=0), **more))
    return stage.beat(), slot["task_id"]


@pytest.mark.parametrize("late", ["run", "skip"])
def test_what_a_flush_lost_is_sent_again_or_told_to_have_failed(stage: Stage, late: str) -> None:
    fresh, task_id = _lost(stage, late=late)
    stage.now += 2 * HOUR  # its window has ended
    stage.tell("h1")
    fresh.settle()
    stage.now += 31
    fresh.settle()
    if late == "run":
        assert stage.ids("h1")[task_id] == 1
    else:
        (told,) = last_of(stage, "failed")
        assert "lost" in told["reason"] and stage.ids("h1").total() == 0


def test_what_was_lost_and_sent_again_fails_for_its_own_reason(stage: Stage) -> None:
    fresh, task_id = _lost(stage)
    stage.tell("h1")
    fresh.settle()
    stage.now += 31
    fresh.settle()
    assert stage.ids("h1")[task_id] == 1
    stage.end(task_id, UnknownDisk("There is no disk vdx.", "Mend it."))
    fresh.settle()
    (told,) = last_of(stage, "failed")
    assert "vdx" in told["reason"] and told["attempt"] == 1 and told["task_id"] == task_id


def test_a_step_whose_answer_was_lost_is_not_made_twice(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.apply(policy())
    stage.host("h1", [A])
    beat = stage.beat()
    beat.settle()
    stage.now += HOUR
    read = redis.connection.AbstractConnection.read_response
    lost: list[Any] = []

    def dropped(self: Any, *args: Any, **named: Any) -> Any:
        answer = read(self, *args, **named)
        if answer == [1]:  # of each step the first
            lost.append(answer)
            if len(lost) % 2:
                raise redis.ConnectionError("Connection closed by server.")
        return answer

    monkeypatch.setattr(redis.connection.AbstractConnection, "read_response", dropped)
    for _ in range(3):
        beat.settle()
    assert len(lost) >= 4 and stage.ids("h1").total() == 1
    (told,) = stage.slots()
    assert told["state"] == "dispatched"
    assert list(beat.board.records) == [json.dumps(told)]


def test_a_policy_whose_time_zone_this_host_does_not_know_holds_no_other_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from beat import clock

    known = clock.ZoneInfo

    monkeypatch.setattr(
        clock, "ZoneInfo", lambda name: known("No/Where" if "Coyhaique" in name else name)
    )
    away = Schedule(cron="0 * * * *", timezone="America/Coyhaique")
    stage.apply(policy("a"), policy("b", repository="two", schedule=away))
    stage.host("h1", [A])
    beat = stage.beat()
    beat.settle()
    stage.now += HOUR
    beat.settle()
    assert [origin.entry.policy for origin, _ in stage.sent("h1")] == ["a"]


def test_an_old_run_that_comes_back_takes_no_slot_away_without_a_word(stage: Stage) -> None:
    stage.apply(policy(schedule=Schedule(every=3600, spread=0)))
    stage.host("h1", [A])
    beat = stage.beat()
    beat.settle()
    stage.now += HOUR
    beat.settle()
    ((origin, _),) = stage.sent("h1")
    run = RunRecord.read(stage.redis, origin.task_id)
    assert run is not None
    stage.gone("h1")
    for _ in range(3):
        stage.now += HOUR
        beat.settle()
    assert f"p/backup/{A}" in beat.board.waiting.works
    slot = beat.board.waiting.works[f"p/backup/{A}"].slot
    stage.hold(run)
    stage.now += 11
    beat.settle()
    told = [s for s in stage.slots() if s["slot"] == moment(slot)]
    assert [s["state"] for s in told] == ["skipped"] and origin.task_id in told[0]["reason"]


def test_rounds_and_records_do_not_depend_on_two_clocks_being_alike(stage: Stage) -> None:
    """What is void after some seconds is void at once for a reader whose clock is ahead."""
    stage.apply(policy())
    stage.host("h1", [A])
    beat = stage.beat()
    beat.settle()
    stage.now += HOUR
    beat.settle()
    beat.settle()
    found: Any = stage.redis.lrange(queues.CENTRAL, 0, -1)
    headers = [json.loads(raw)["headers"] for raw in found]
    assert {h["task"] for h in headers} >= {queues.SWEEP, queues.WATCH, queues.RECORD}
    assert [h["task"] for h in headers if h["expires"]] == []
    # With central away not more and more of them lie there.
    for _ in range(300):
        stage.now += 16
        beat.tick()
    found = stage.redis.lrange(queues.CENTRAL, 0, -1)
    sent = Counter(json.loads(raw)["headers"]["task"] for raw in found)
    assert sent[queues.SWEEP] == sent[queues.WATCH] == 1 and sent[queues.RECORD] <= 50


def test_of_two_sweeps_at_once_one_publishes_whatever_else_lies_in_the_queue(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunRecord("t-1", queues.BACKUP, "hv.h1", "h1", {"domain": A})
    run.write(stage.redis)
    # As Celery's first protocol has it: no id among the headers.
    stage.redis.lpush(run.queue, json.dumps({"body": "", "headers": {}, "properties": {}}))
    assert sweep(stage.app, stage.redis) == []
    (suspicion,) = stage.redis.scan_iter("virtvault:suspect:*")
    stage.redis.expire(suspicion, 86_000)  # since longer than the grace time
    delete, others = redis.Redis.delete, []

    def another_first(self: Any, *keys: Any) -> Any:
        if not others:
            others.append(None)
            others[:] = sweep(stage.app, stage.redis)
        return delete(self, *keys)

    monkeypatch.setattr(redis.Redis, "delete", another_first)
    assert sweep(stage.app, stage.redis) == [] and others == ["t-1"]


@pytest.mark.parametrize("result", [{"instant": "yesterday"}, {"instant": 5}, None, "done"])
def test_a_result_that_is_not_understood_stops_no_beat(stage: Stage, result: Any) -> None:
    stage.apply(policy())
    stage.host("h1", [A])
    beat = stage.beat()
    beat.settle()
    stage.now += HOUR
    beat.settle()
    ((origin, _),) = stage.sent("h1")
    meta = {"task_id": origin.task_id, "status": "SUCCESS", "result": result, "traceback": None}
    stage.redis.set(stage.app.backend.get_key_for_task(origin.task_id), json.dumps(meta))
    beat.settle()
    assert beat.board.flights.works == {}
    assert beat.board.lasts[f"p/backup/{A}"] == (stage.now, stage.now)


def test_what_one_hypervisor_says_and_nobody_understands_stops_no_other(stage: Stage) -> None:
    stage.apply(policy())
    stage.host("h1", [A])
    stage.redis.hset(queues.HOSTS_KEY, "h2", moment(stage.now))
    stage.redis.set(queues.host_key("h2"), "{")
    stage.redis.set(queues.inventory_key("h2"), "{")
    beat = stage.beat()
    beat.settle()
    stage.now += HOUR
    beat.settle()
    assert stage.ids("h1").total() == 1


def test_a_question_that_was_void_by_the_other_host_s_clock_says_so(stage: Stage) -> None:
    """Celery's worker marks a message that it takes for expired as revoked."""
    with Connection(stage.settings) as connection:
        backend = connection._questions.backend
        send = connection._questions.send_task

        def expired(*args: Any, **named: Any) -> Any:
            sent = send(*args, **named)
            meta = {"task_id": sent.id, "status": "REVOKED", "result": None, "traceback": None}
            stage.redis.set(backend.get_key_for_task(sent.id), json.dumps(meta))
            return sent

        connection._questions.send_task = expired
        with pytest.raises(NotReachable, match="clocks"):
            connection._question(queues.CENTRAL, queues.POLICIES, 0)
