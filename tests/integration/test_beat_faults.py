"""Beats that die, a Redis that is flushed, a central that is down: nothing twice, nothing lost."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beat import dispatching
from beat.entries import moment
from beat.leader import Deposed
from beat.state import State
from tasks.sweep import sweep
from tests.integration.beat_stage import HOUR, MONDAY, Stage, policy, uuids
from tests.lab.redis_server import RedisServer
from virtvault import queues, runs
from virtvault.errors import InvalidRequest, JobFailed
from virtvault.models import Limits, Schedule

A, B, C = uuids(3)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(Path("/var/tmp") / f"vvbeat-{tmp_path_factory.mktemp('f').parent.name}") as s:
        yield s


@pytest.fixture
def stage(redis_server: RedisServer, tmp_path: Path) -> Iterator[Stage]:
    redis_server.flush()
    made = Stage(redis_server, tmp_path)
    yield made
    made.close()


def test_a_beat_that_lost_the_lead_changes_nothing_and_publishes_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.apply(policy())
    stage.host("h1", uuids(5))
    first, second = stage.beat(), stage.beat()
    first.settle()
    stage.now += HOUR
    commit = State.commit

    def deposed_before_the_claim(self: State, *changes: Any) -> list[bool]:
        claims = any(change.unless for change in changes)
        if claims and self is first.board.state:
            # It stood still; meanwhile the other one took over and did the work.
            stage.depose()
            second.settle()
            assert stage.ids("h1").total() == 5
        return commit(self, *changes)

    monkeypatch.setattr(State, "commit", deposed_before_the_claim)
    first.settle()
    assert not first.leads and second.leads
    assert set(stage.ids("h1").values()) == {1} and stage.ids("h1").total() == 5
    assert [s["state"] for s in stage.slots()] == ["dispatched"] * 5
    with pytest.raises(Deposed):
        first.board.adopt(stage.now)
        change = dispatching.Change()
        change.due("p/backup/x", 1.0)
        first.board.commit(change)


def test_a_beat_killed_between_claim_and_publication_is_mended_by_the_sweep(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.apply(policy())
    stage.host("h1", [A])
    stage.host("h2", [B, C])
    beat = stage.beat()
    beat.settle()
    stage.now += HOUR
    publish = runs.publish

    def killed(app: Any, run: runs.RunRecord, producer: Any) -> None:
        if run.request["domain"] == C:
            raise KeyboardInterrupt
        publish(app, run, producer)

    monkeypatch.setattr(runs, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        beat.settle()
    monkeypatch.setattr(runs, "publish", publish)
    stage.depose()
    stage.beat().settle()
    assert (stage.ids("h1").total(), stage.ids("h2").total()) == (1, 1)
    assert sweep(stage.app, stage.redis) == []
    for key in stage.redis.scan_iter("virtvault:suspect:*"):
        stage.redis.expire(key, 86_000)  # it is suspected since longer than the grace time
    (swept,) = sweep(stage.app, stage.redis)
    assert stage.ids("h2")[swept] == 1 and stage.ids("h1", "h2").total() == 3
    # The slot is in flight for the next beat all the same: its end is seen.
    fresh = stage.beats[-1]
    assert f"p/backup/{C}" in fresh.board.flights.works
    stage.end(swept)
    fresh.settle()
    assert fresh.board.flights.works.keys() == {f"p/backup/{A}", f"p/backup/{B}"}


def test_a_flush_under_a_living_beat_costs_nothing_even_while_central_is_down(
    stage: Stage,
) -> None:
    stage.apply(policy("p", late="run"), limits=Limits(total=2))
    stage.host("h1", uuids(5))
    beat = stage.beat()
    beat.settle()
    stage.said = None
    stage.now += HOUR
    beat.settle()
    first = stage.ids("h1")
    assert first.total() == 2
    stage.server.flush()
    beat.settle()
    # Both are in flight: nothing more begins, and the sweep has what it needs to send them again.
    assert stage.ids("h1").total() == 0
    assert {m.decode() for m in stage.redis.smembers(queues.OPEN_RUNS_KEY)} == set(first)
    assert len(stage.slots()) == 2
    stage.tell("h1")
    seen = set(first)
    for _ in range(3):
        for task_id in stage.redis.smembers(queues.OPEN_RUNS_KEY):
            stage.end(task_id.decode())
        beat.settle()
        assert not seen & set(stage.ids("h1")) or stage.ids("h1").total() <= 3
        seen |= set(stage.ids("h1"))
    assert len(seen) == 5 and set(stage.ids("h1").values()) == {1}
    stage.now += HOUR
    beat.settle()
    assert len(stage.redis.smembers(queues.OPEN_RUNS_KEY)) == 2


def test_after_a_flush_a_new_beat_goes_on_from_what_central_and_workers_know(
    stage: Stage,
) -> None:
    stage.apply(policy(), limits=Limits(total=3))
    stage.host("h1", uuids(4))
    beat = stage.beat()
    beat.settle()
    stage.now += HOUR
    beat.settle()
    held, lost, done = sorted(stage.ids("h1"))
    origins = {task_id: stage.origin(task_id) for task_id in (held, lost, done)}
    worker = runs.RunRecord.read(stage.redis, held)
    assert worker is not None
    assert stage.said is not None
    stage.ended.add(done)
    for slot in stage.slots():
        stage.said[f"{slot['policy']}/{slot['kind']}/{slot['uuid']}"] = slot
    (waits,) = set(uuids(4)) - {origin.entry.uuid for origin in origins.values()}
    before = {"slot": moment(MONDAY), "state": "dispatched", "attempt": 1, "task_id": done}
    stage.said[f"p/backup/{waits}"] = before
    stage.depose()
    stage.server.flush()
    stage.apply(policy(), limits=Limits(total=3))
    stage.tell("h1")
    stage.now += 60
    fresh = stage.beat()
    fresh.settle()
    assert stage.ids("h1").total() == 0  # workers have the time of a lease to tell of their runs
    stage.hold(worker)
    stage.now += stage.settings.lease_seconds
    fresh.settle()
    sent = stage.ids("h1")
    # What a worker holds and what has ended is not sent; what is lost is, under its own id; and
    # the fourth domain, which had to wait for room before the flush, has its first now.
    assert held not in sent and done not in sent and sent[lost] == 1
    (waited,) = set(sent) - {lost}
    assert stage.origin(waited).entry.uuid == waits
    assert len(fresh.board.flights.works) == 3


def test_without_policies_in_redis_central_is_asked_and_no_tick_waits(stage: Stage) -> None:
    stage.host("h1", [A])
    stage.said = None
    beat = stage.beat()
    for _ in range(3):
        assert beat.tick() > 0
    assert beat.leads and stage.ids("h1").total() == 0
    # The rounds go on, so that central finds work when it is back.
    assert stage.redis.llen("central") >= 1


def test_redis_that_is_away_is_waited_for(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "r") as server:
        stage = Stage(server, tmp_path)
        stage.apply(policy())
        stage.host("h1", [A])
        beat = stage.beat()
        beat.settle()
        server.kill()
        assert beat.tick() > 0
        stage.now += HOUR
        assert beat.tick() > 0
        server.start()
        stage.beat_of("h1")
        beat.settle()
        assert stage.ids("h1").total() == 1
        stage.close()


def test_what_became_of_slots_stays_until_central_has_it(stage: Stage) -> None:
    stage.apply(policy())
    stage.host("h1", [A, B])
    beat = stage.beat()
    beat.settle()
    stage.now += HOUR
    beat.settle()

    def sent() -> list[dict[str, Any]]:
        found: Any = stage.redis.lrange("central", 0, -1)
        messages = [json.loads(raw)["headers"] for raw in reversed(found)]
        return [m for m in messages if m["task"] == queues.RECORD]

    beat.settle()
    assert len(sent()) == 1 and len(stage.slots()) == 2
    stage.depose()
    stage.redis.delete("central")
    stage.now += 60
    fresh = stage.beat()
    fresh.settle()
    (again,) = sent()
    stage.now += 20
    fresh.settle()  # no answer: void, and sent again
    fresh.settle()
    assert [m["id"] for m in sent()] == [again["id"]] * 2
    stage.end(again["id"])
    fresh.settle()
    assert stage.slots() == []
    stage.now += HOUR
    for task_id in stage.ids("h1"):
        stage.end(task_id)
    fresh.settle()
    # One that central refuses for good does not keep the others from it.
    for _ in range(30):
        last = sent()[-1]
        if len(stage.slots()) == 0:
            break
        stage.end(last["id"], InvalidRequest("slot: wrong.", "Mend it."))
        fresh.settle()
        fresh.settle()
    assert stage.slots() == []


def _check(stage: Stage, published: dict[str, int], limits: Limits) -> None:
    """What holds at every moment, whatever has happened."""
    open_runs = [runs.RunRecord.read(stage.redis, m.decode()) for m in _open(stage)]
    hosts = [run.host for run in open_runs if run is not None]
    assert len(hosts) <= limits.total
    assert all(hosts.count(host) <= limits.per_host for host in set(hosts))
    assert not [task_id for task_id, count in published.items() if count > 1]


def _open(stage: Stage) -> set[bytes]:
    found: Any = stage.redis.smembers(queues.OPEN_RUNS_KEY)
    return set(found)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_limits_hold_and_no_slot_runs_twice(stage: Stage, seed: int) -> None:
    chance = random.Random(seed)
    limits = Limits(total=5, per_host=2)
    hosts = {f"h{n}": uuids(4, n * 4) for n in range(4)}
    stage.apply(
        policy("a", schedule=Schedule(every=1800, window=1800, spread=600)),
        policy("b", repository="two", schedule=Schedule(every=3600, spread=60), late="skip"),
        limits=limits,
    )
    for host, own in hosts.items():
        stage.host(host, own)
    beats = [stage.beat(), stage.beat()]
    published: dict[str, int] = {}
    states: dict[tuple[str, ...], set[str]] = {}
    ended = stage.ended

    def look() -> None:
        """Take the messages as workers do, and the records as central does."""
        for host in hosts:
            for task_id, count in stage.ids(host).items():
                published[task_id] = published.get(task_id, 0) + count
            stage.redis.delete(queues.host_queue(host))
        for slot in stage.slots():
            key = (slot["policy"], slot["kind"], slot["uuid"], slot["slot"], slot["attempt"])
            states.setdefault(key, set()).add(slot["state"])
            assert stage.said is not None
            newest = stage.said.setdefault("/".join(key[:3]), {"slot": "", "attempt": 0})
            if (newest["slot"], newest["attempt"]) <= (slot["slot"], slot["attempt"]):
                newest.update(slot)
        _check(stage, published, limits)

    for _ in range(180):
        match chance.randrange(12):
            case 0:
                stage.depose()
            case 1:
                stage.gone(chance.choice(list(hosts)))
            case 2 if chance.random() < 0.2:
                held = [runs.RunRecord.read(stage.redis, m.decode()) for m in _open(stage)]
                stage.server.flush()
                for run in held:  # their workers tell of them at once
                    assert run is not None
                    stage.hold(run)
                    if run.task_id in ended:  # it is sent again, and found done
                        stage.end(run.task_id)
                for host in hosts:
                    stage.tell(host)
            case 3:
                moved = chance.choice([*hosts["h0"]])
                rest = [u for u in hosts["h0"] if u != moved]
                stage.host("h0", rest)
                stage.host("h1", [*hosts["h1"], moved])
            case 4 | 5 | 6 | 7:
                for member in sorted(_open(stage))[: chance.randrange(4)]:
                    failed = JobFailed("EIO.", "Look.") if chance.random() < 0.3 else None
                    stage.end(member.decode(), failed)
            case _:
                stage.now += chance.choice([1, 30, 300, 900])
        for host in hosts:  # not gone for so long that its runs are given up
            if chance.random() < 0.5 or stage.heard[host] < stage.now - 1800:
                stage.beat_of(host)
        beat = chance.choice(beats)
        for _ in range(chance.randrange(1, 4)):
            beat.tick()
            look()
    assert len(published) > 30
    torn = {key: found for key, found in states.items() if {"dispatched", "skipped"} <= found}
    assert not torn
    assert all(len(found - {"failed"}) <= 1 for found in states.values())
