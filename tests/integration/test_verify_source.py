"""``verify --against-source``: a bitmap that lied is found, and a guest that writes is no lie."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import MIB, Points
from tests.integration.scenes import (
    VDA,
    VDB_RAW,
    Boot,
    TakePoints,
    bitmaps,
    disk_of,
    files,
    give_new_content,
    node_of,
    nodes,
    processes,
    snapshot,
    syncs,
)
from tests.lab import DiskSpec, Guest
from virtvault.errors import InvalidRequest, WorkFailed
from virtvault.models import Progress, Verdict, VerifyRequest
from workers.engine import Engine, Ties
from workers.verify import verify


def compared(engine: Engine, point: str, **request: Any) -> Verdict:
    """The point's verdict with a comparison against its source."""
    asked = VerifyRequest((point,), against_source=True, **request)
    result = verify(engine, asked, Ties(uuid.uuid4().hex))
    return next(verdict for verdict in result.verdicts if verdict.point == point)


def lie(guest: Guest, point: Points, write: str) -> None:
    """Have the guest write while its bitmap does not record: what no look at a bitmap shows."""
    bitmap = {"node": node_of(guest, "vda"), "name": disk_of(point.taken[-1][0], "vda").bitmap}
    guest.qmp("block-dirty-bitmap-disable", **bitmap)
    guest.qemu_io("vda", write)
    guest.qmp("block-dirty-bitmap-enable", **bitmap)


def assert_nothing_remains(engine: Engine, guest: Guest) -> None:
    assert guest.qmp("query-block-exports") == []
    assert not [name for name in bitmaps(guest) if name.endswith("-verify")]
    guest.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": "/tmp/vv-free.sock"}})
    guest.qmp("nbd-server-stop")
    assert not {node for node in nodes(guest) if node.startswith("vv")}
    runtime, state = engine.settings.runtime_dir, engine.settings.state_dir
    assert not processes(f"{runtime}/")
    assert files(runtime, f"{state}/runs") == []


@pytest.mark.parametrize(
    "missed", ["write -P 9 20M 4k", "write -z 2M 64k"], ids=["written", "zeroed"]
)
def test_a_bitmap_that_missed_a_write_is_found_and_nothing_builds_on_it(
    boot: Boot, points: TakePoints, engine: Engine, missed: str
) -> None:
    guest = boot(VDA, VDB_RAW)
    chain = points(guest)
    give_new_content(guest, 1)
    chain.take()
    give_new_content(guest, 2)
    second = chain.take()
    verdict = compared(engine, second.point)
    assert verdict.verdict == "good" and verdict.source is not None
    assert verdict.source.differing == ()
    assert verdict.source.compared == verdict.source.samples * 65536 > 0

    lie(guest, chain, missed)
    offset = 20 * MIB if "20M" in missed else 2 * MIB
    verdict = compared(engine, second.point)
    assert verdict.source is not None and verdict.source.differing == (f"vda {offset}",)
    assert verdict.verdict == "bad" and "though no bitmap marks them" in verdict.detail
    assert_nothing_remains(engine, guest)
    # A later verify of what is stored finds nothing wrong with it, and takes nothing back.
    later = verify(engine, VerifyRequest((second.point,)), Ties("later"))
    assert later.verdicts[-1].verdict == "bad"

    third = chain.take()
    assert syncs(third) == {"vda": "full", "vdb": "incremental"}
    assert f"point {second.point} was found bad" in disk_of(third, "vda").reason
    chain.prove_all()
    assert compared(engine, third.point).verdict == "good"


def test_a_guest_that_writes_all_the_time_raises_no_alarm(
    boot: Boot, points: TakePoints, engine: Engine, workdir: Path
) -> None:
    guest = boot(DiskSpec("vda", "qcow2", 256 * MIB), boot=True, writer=True)
    guest.wait_ready()
    point = points(guest).back_up()
    snapshot(guest, "vda", workdir / "guest" / "overlay.qcow2")
    guest.wait_ticks(guest.ticks() + 1)
    ticks = guest.ticks()
    for _ in range(2):
        verdict = compared(engine, point.point, samples=4096)
        assert verdict.verdict == "good", verdict
        assert verdict.source is not None and verdict.source.samples > 20
    guest.wait_ticks(ticks + 2)
    assert_nothing_remains(engine, guest)


def test_what_is_written_between_the_look_at_the_bitmap_and_the_reading_is_no_lie(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    guest.qemu_io("vda", "write -P 1 0 32M")
    point = chain.take().point
    reports: list[Progress] = []

    def overwrite(progress: Progress) -> None:
        # The first says that it begins, the next that one granule of 512 has been read.
        if progress.phase == "comparing":
            reports.append(progress)
            if len(reports) == 2:
                guest.qemu_io("vda", "write -P 7 0 32M")

    asked = VerifyRequest((point,), against_source=True, samples=512)
    result = verify(engine, asked, Ties("t1", overwrite))
    assert reports[1].done == 65536 and reports[1].total > 500 * 65536
    assert result.state == "good"
    assert_nothing_remains(engine, guest)


def test_what_cannot_be_compared_is_said_before_anything_is_read(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    first, second = chain.take(), chain.take()
    with pytest.raises(InvalidRequest, match=f"its bitmap counts from point {second.point}"):
        compared(engine, first.point)
    elsewhere = guest.directory / "other.sock"
    guest.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": str(elsewhere)}})
    with pytest.raises(WorkFailed, match="NBD server already running"):
        compared(engine, second.point)
    guest.qmp("nbd-server-stop")  # still theirs
    guest.shutdown_clean()
    with pytest.raises(InvalidRequest, match="is not running"):
        compared(engine, second.point)
