"""Two real beats: one is killed while it dispatches, the other one finishes its work."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beat.leader import who_leads
from tasks.sweep import sweep
from tests.integration.beat_stage import Stage, policy, uuids
from tests.lab.redis_server import RedisServer
from virtvault import queues
from virtvault.models import Schedule

HOSTS = {f"h{number}": uuids(250, 250 * number) for number in range(4)}
DUE = f"{queues.BEAT_PREFIX}due"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with RedisServer(Path("/var/tmp") / f"vvbeats-{os.getpid()}") as server:
        made = Stage(server, tmp_path)
        made.now = time.time()
        yield made
        made.close()


@pytest.fixture
def start(stage: Stage, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    config = tmp_path / "virtvault.toml"
    lines = [
        f'broker_url = "{stage.server.url}"',
        f'state_dir = "{tmp_path}"',
        "leader_seconds = 2",
        "beat_interval = 0.2",
        "control_timeout = 1",
    ]
    config.write_text("\n".join(lines))
    processes = []

    def launch() -> subprocess.Popen[bytes]:
        with (tmp_path / "beat.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tasks.role", "beat"],
                env={**os.environ, "VIRTVAULT_CONFIG": str(config)},
                stdout=log,
                stderr=log,
                cwd="/",
            )
        processes.append(process)
        return process

    yield launch
    for process in processes:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def test_a_beat_killed_in_mid_burst_is_followed_and_each_slot_is_dispatched_once(
    stage: Stage, start: Callable[[], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    stage.apply(policy(schedule=Schedule(every=86_400, window=86_400, spread=43_200)))
    for host, own in HOSTS.items():
        stage.host(host, own)
    # Central is not there: what it would say is that nothing was ever dispatched.
    stage.redis.set(f"{queues.BEAT_PREFIX}epoch", "test")
    beats = [start(), start()]
    wait_for(lambda: stage.redis.zcard(DUE) == 1000)
    leader = next(b for b in beats if f":{b.pid} " in who_leads(stage.redis))
    (other,) = (b for b in beats if b is not leader)
    # The time has come for all of them.
    for host in HOSTS:
        stage.redis.set(queues.host_key(host), "{}", ex=600)
    entries = stage.redis.zrange(DUE, 0, -1)
    stage.redis.zadd(DUE, {entry: time.time() - 1 for entry in entries})

    def lengths() -> int:
        return sum(stage.redis.llen(queues.host_queue(host)) for host in HOSTS)

    wait_for(lambda: lengths() > 200)
    leader.kill()
    leader.wait()
    before = lengths()
    assert before < 950, "it was too late to be of any meaning"
    wait_for(lambda: f":{other.pid} " in who_leads(stage.redis))
    wait_for(lambda: len(stage.redis.smembers(queues.OPEN_RUNS_KEY)) == 1000)
    wait_for(lambda: not stage.redis.exists(f"{queues.BEAT_PREFIX}ready"))
    # SIGTERM ends it between two steps; what is left without a message was the killed one's.
    other.terminate()
    assert other.wait(20) == 0
    assert who_leads(stage.redis) == ""
    sent = stage.ids(*HOSTS)
    assert set(sent.values()) == {1}
    assert 1000 - 100 <= len(sent) <= 1000
    sweep(stage.app, stage.redis)
    for key in stage.redis.scan_iter("virtvault:suspect:*"):
        stage.redis.expire(key, 86_000)
    sweep(stage.app, stage.redis)
    sent = stage.ids(*HOSTS)
    assert len(sent) == 1000 and set(sent.values()) == {1}
    assert "Traceback" not in (tmp_path / "beat.log").read_text()


def test_a_beat_that_is_told_to_end_hands_over_at_once(
    stage: Stage, start: Callable[[], subprocess.Popen[bytes]]
) -> None:
    first = start()
    wait_for(lambda: who_leads(stage.redis))
    second = start()
    # It stands by: alive for longer than it would need to lead.
    wait_for(lambda: stage.redis.info("clients")["connected_clients"] >= 3)
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == 0
    wait_for(lambda: f":{second.pid} " in who_leads(stage.redis), 20)
