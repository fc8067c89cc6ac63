"""What a policy asks of the engine: a full after so many points, a verify of the newest point."""

from __future__ import annotations

import uuid

import pytest

from tests.integration.conftest import Points
from tests.integration.scenes import VDA, Boot, TakePoints
from virtvault.errors import UnknownPoint
from virtvault.models import BackupRequest, BackupResult, Verdict, VerifyRequest, VerifyResult
from workers.backup import backup
from workers.engine import Engine, Ties
from workers.jobs import Detached
from workers.repository import open_repository, sidecar
from workers.verify import verify


def take(engine: Engine, points: Points, **request: int) -> BackupResult:
    name = points.guest.domain.name()
    done = backup(engine, BackupRequest(domain=name, **request), Ties(uuid.uuid4().hex))  # type: ignore[arg-type]
    assert isinstance(done, BackupResult)
    return done


def look(engine: Engine, uuid_: str, task_id: str = "") -> VerifyResult:
    return verify(engine, VerifyRequest(domain=uuid_), Ties(task_id or uuid.uuid4().hex))


def test_a_chain_is_ended_after_so_many_points_and_its_newest_good_point_is_verified(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    taken = points(boot(VDA))
    with pytest.raises(UnknownPoint, match="has no good point in repository main: there are 0"):
        look(engine, taken.guest.domain.UUIDString())

    made = [take(engine, taken, full_points=2, full_days=30) for _ in range(3)]
    assert [one.disks[0].sync for one in made] == ["full", "incremental", "full"]
    assert made[2].disks[0].reason == "the chain has 2 points: the policy wants a full after 2"
    assert made[1].disks[0].parent == made[0].point

    uuid_, newest = made[0].uuid, made[-1].point
    found = look(engine, uuid_, "a-verify-that-comes-twice")
    assert [(v.point, v.verdict) for v in found.verdicts] == [(newest, "good")]

    with pytest.raises(Detached):
        stopping = Ties("a-verify-whose-worker-stops", stopping=lambda: True)
        verify(engine, VerifyRequest(domain=uuid_), stopping)

    # A second delivery looks at what the first did, though there is a newer one by now.
    later = take(engine, taken)
    assert look(engine, uuid_, "a-verify-that-comes-twice") == found
    gone_on = look(engine, uuid_, "a-verify-whose-worker-stops")
    assert [v.point for v in gone_on.verdicts] == [newest]
    # One that is known to be damaged is not the newest good one.
    repository = open_repository(engine.settings, "main")
    bad = Verdict(later.point, "bad", later.finished, "lab", "by-hand-12", "seen by hand")
    sidecar.write_verdict(repository.directory(uuid_, later.point), bad)
    assert [v.point for v in look(engine, uuid_).verdicts] == [newest]
