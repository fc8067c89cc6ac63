"""What a tick of the scheduler costs: `python -m bench.beat`, beside celery-redbeat's.

Both on one Redis in one run, each with as many scheduled domains: none of them due, and then 5 %.
Ours also claims each slot for one of several beats, writes a run record and tells central; redbeat
publishes a message and sets the entry's next time.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import redis
from celery.schedules import schedule
from redbeat import RedBeatScheduler, RedBeatSchedulerEntry

from beat.entries import moment
from tests.integration.beat_stage import MONDAY, Stage, policy, uuids
from tests.lab.redis_server import RedisServer
from virtvault import queues
from virtvault.celery_app import client_app
from virtvault.models import Schedule

SIZES = (1_000, 10_000, 50_000)
SHARE = 0.05
IDLE_TICKS = 100
ON_A_HOST = 200
HOUR = 3600


def main() -> None:
    warnings.simplefilter("ignore")
    rows = []
    with tempfile.TemporaryDirectory(prefix="vvbench-", dir="/var/tmp") as name:
        directory = Path(name)
        for size in SIZES:
            with RedisServer(directory / "redis") as server:
                ours = _ours(server, directory, size)
                server.flush()
                theirs = _redbeat(server, directory, size)
            rows.append((size, ours, theirs))
    heads = ["domains", "idle tick: ours", "redbeat", "ratio", "5 % due: ours", "redbeat", "ratio"]
    heads += ["by the clock: ours", "redbeat", "longest tick: ours", "redbeat"]
    heads += ["Redis: ours", "redbeat"]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for size, ours, theirs in rows:
        cells = [f"{size:,}".replace(",", " ")]
        cells += [f"{ours[0] * 1000:.2f} ms", f"{theirs[0] * 1000:.2f} ms", _ratio(ours, theirs, 0)]
        cells += [f"{ours[1]:.2f} s", f"{theirs[1]:.2f} s", _ratio(ours, theirs, 1)]
        for which in (2, 3):
            cells += [f"{ours[which]:.2f} s", f"{theirs[which]:.2f} s"]
        cells += [f"{ours[4]:.0f} MiB", f"{theirs[4]:.0f} MiB"]
        print("| " + " | ".join(cells) + " |")


# Seconds of an idle tick and of a burst on the processor, of the burst and its longest tick by the
# clock; MiB of Redis.
Cost = tuple[float, float, float, float, float]


def _ratio(ours: Cost, theirs: Cost, which: int) -> str:
    return f"{ours[which] / theirs[which]:.2f} x"


def _ours(server: RedisServer, directory: Path, size: int) -> Cost:
    stage = Stage(server, directory)
    stage.apply(policy(schedule=Schedule(every=HOUR, window=HOUR, spread=HOUR)))
    domains = uuids(size)
    for start in range(0, size, ON_A_HOST):
        stage.host(f"h{start // ON_A_HOST}", domains[start : start + ON_A_HOST])
    # They have run before: none of them is new.
    before = {"slot": moment(MONDAY - HOUR), "state": "dispatched", "attempt": 1, "task_id": "t"}
    stage.said = {f"p/backup/{uuid}": before for uuid in domains}
    stage.ended.add("t")
    began = time.monotonic()
    beat = stage.beat()
    beat.settle()
    stage.now += stage.settings.lease_seconds + 1
    beat.settle()
    due = f"{queues.BEAT_PREFIX}due"
    assert stage.redis.zcard(due) == size
    print(f"ours, {size}: planned in {time.monotonic() - began:.1f} s", flush=True)
    # What began meanwhile ends, and central has recorded it; the others are put off.
    while stage.slots() or beat.board.flights.works:
        for work in beat.board.flights.works.values():
            stage.end(work.task_id)
        for raw in stage.redis.lrange(queues.CENTRAL, 0, -1):
            stage.end(json.loads(raw)["headers"]["id"])
        beat.tick()
    stage.redis.zadd(due, dict.fromkeys(stage.redis.zrange(due, 0, -1), stage.now + HOUR))
    idle = _idle(beat.tick)
    memory = _memory(stage.redis)
    sent = stage.ids(*stage.fleet).total()
    share = int(size * SHARE)
    at_rest = [entry for entry, (slot, _) in beat.board.lasts.items() if slot == MONDAY - HOUR]
    stage.redis.zadd(due, dict.fromkeys(at_rest[:share], stage.now))
    for host in stage.fleet:
        stage.beat_of(host)
    # All are in the hour's slot that is due now.
    for entry, (_, good) in list(beat.board.lasts.items()):
        beat.board.lasts[entry] = (MONDAY - 2 * HOUR, good)
    took, longest, spent = 0.0, 0.0, 0.0
    while stage.ids(*stage.fleet).total() - sent < share:
        began, cpu = time.monotonic(), time.process_time()
        beat.tick()
        step, spent = time.monotonic() - began, spent + time.process_time() - cpu
        took, longest = took + step, max(longest, step)
    ids = stage.ids(*stage.fleet)
    assert ids.total() - sent == share and set(ids.values()) == {1}
    stage.close()
    return idle, spent, took, longest, memory


def _redbeat(server: RedisServer, directory: Path, size: int) -> Cost:
    stage = Stage(server, directory)
    app = client_app(stage.settings)
    app.conf.update(
        redbeat_redis_url=server.redis_py_url,
        redbeat_lock_key=None,
        beat_max_loop_interval=5,
        redbeat_key_prefix="redbeat:",
    )
    now = datetime.now(UTC)
    keys = []
    for number, uuid in enumerate(uuids(size)):
        entry = RedBeatSchedulerEntry(
            f"p/backup/{uuid}",
            queues.BACKUP,
            schedule(HOUR * 24),
            args=[{"domain": uuid}],
            options={"queue": f"hv.h{number // ON_A_HOST}"},
            app=app,
            last_run_at=now,
        )
        entry.save()
        keys.append(entry.key)
    scheduler = RedBeatScheduler(app, max_interval=5)
    scheduler.tick()
    idle = _idle(scheduler.tick)
    memory = _memory(stage.redis)
    share = int(size * SHARE)
    for key in keys[:share]:
        entry = RedBeatSchedulerEntry.from_key(key, app=app)
        entry.reschedule(now - timedelta(days=2))
    hosts = [f"h{number}" for number in range(-(-size // ON_A_HOST))]
    took, longest, spent = 0.0, 0.0, 0.0
    while (sent := stage.ids(*hosts).total()) < share:
        began, cpu = time.monotonic(), time.process_time()
        scheduler.tick()
        step, spent = time.monotonic() - began, spent + time.process_time() - cpu
        took, longest = took + step, max(longest, step)
    assert sent == share
    print(f"redbeat, {size}: done", flush=True)
    stage.close()
    return idle, spent, took, longest, memory


def _idle(tick: Callable[[], Any]) -> float:
    """Seconds on the processor of one tick in which nothing is due: the median."""
    costs = []
    for _ in range(IDLE_TICKS):
        began = time.process_time()
        tick()
        costs.append(time.process_time() - began)
    return statistics.median(costs)


def _memory(client: redis.Redis) -> float:
    found: Any = client.info("memory")
    return float(found["used_memory"]) / 2**20


if __name__ == "__main__":
    main()
