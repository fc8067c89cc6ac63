"""Prune and merge, killed at random steps: every kept point reads the same after each kill.

A round lets a process of its own prune a random choice of points and kills it, with its storage
daemon, before one of its steps: a QMP command, a rename, a removal, a start of a program, a file
opened for writing. The next round begins with what the last one left.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.stored import Stored
from virtvault.models import PruneRequest
from workers.engine import Ties
from workers.prune import prune
from workers.repository import sidecar
from workers.storage_daemon import StorageDaemonMonitor

STEPS = ("os.rename", "os.remove", "os.rmdir", "subprocess.Popen", "shutil.rmtree")
WRITES = os.O_WRONLY | os.O_RDWR


# 200 kills and more in all.
@pytest.mark.parametrize(("targets", "least"), [(("vda",), 130), (("vda", "vdb"), 80)])
@pytest.mark.timeout(600)
def test_every_kept_point_reads_the_same_after_each_kill(
    workdir: Path, targets: tuple[str, ...], least: int
) -> None:
    stored = Stored(workdir / "s", len(targets), targets)
    chance = random.Random(len(targets))
    stored.chain(4)
    kills = merges = rounds = 0
    longest = 40
    while kills < least:
        rounds += 1
        there = _readable(stored)
        while len(there) < 6:
            # Now and then a branch, as after a storage rollback, or a new full.
            parent = there[-1] if chance.random() < 0.8 else chance.choice(["", *there])
            there.append(stored.take(parent))
        unwanted = chance.sample(there[:-1], chance.randint(1, 4))
        kept = [id_ for id_ in there if id_ not in unwanted]
        # Now and then to its end: it finishes what the killed ones have left.
        last = chance.randint(1, longest) if rounds % 6 else sys.maxsize
        done = _prune_in_a_process(stored, unwanted, f"t-{rounds}", last)
        kills += not done
        if done:
            longest = min(longest, last)
            assert not _marked(stored)
            stored.assert_whole()
        else:
            longest = max(longest, last + 10)
        stored.assert_equal(kept)
        merges += sum(bool(point.merged) for point in stored.repository.points(stored.uuid))
    assert _prune_in_a_process(stored, [_readable(stored)[0]], "last", sys.maxsize)
    stored.assert_equal(_readable(stored))
    stored.assert_whole()
    assert not _marked(stored)
    # Kills alone would prove nothing.
    assert merges > 20
    stored.close()


def _readable(stored: Stored) -> list[str]:
    """The points that are not on their way out."""
    return [id_ for id_ in stored.ids() if id_ not in _marked(stored)]


def _marked(stored: Stored) -> set[str]:
    domain = stored.repository.directory(stored.uuid, "")
    return {path.parent.name for path in domain.glob(f"*/{sidecar.PRUNING}")}


def _prune_in_a_process(stored: Stored, points: list[str], task_id: str, last: int) -> bool:
    """Prune in a process that is killed at its step number ``last``; whether it came to its end."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            _die_at(last)
            prune(stored.engine, PruneRequest(points=tuple(points)), Ties(task_id))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def _die_at(last: int) -> None:
    """Have this process kill itself right before its step number ``last``."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STEPS or (event == "open" and (arguments[2] or 0) & WRITES):
            step()

    execute: Callable[..., Any] = StorageDaemonMonitor.execute

    def executed(self: StorageDaemonMonitor, command: str, **named: Any) -> Any:
        step()
        return execute(self, command, **named)

    StorageDaemonMonitor.execute = executed  # type: ignore[method-assign]
    sys.addaudithook(audit)
