"""Every sync mode on every domain state and disk format: what is done, byte for byte.

docs/modes.md is the table of these cells; tests/unit/test_docs.py holds the two together.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import MIB, with_settings
from tests.integration.scenes import (
    Boot,
    Open,
    TakePoints,
    assert_nothing_remains,
    bitmaps,
    disk_of,
    flat_copy,
    give_new_content,
    image_of,
    qemu_img,
    snapshot,
)
from tests.lab import DiskSpec, Guest, assert_same
from virtvault.errors import InvalidRequest, NotSupported, RepositoryUnusable
from virtvault.models import BackupRequest, BackupResult, RestoreRequest, RestoreResult
from workers.backup import backup
from workers.engine import Engine, Ties
from workers.restore import restore

STATES = ("running", "paused", "shut off", "start-paused")
FORMATS = ("qcow2", "raw")

every_state = pytest.mark.parametrize("state", STATES)
every_format = pytest.mark.parametrize("format_", FORMATS)

Put = Callable[[Guest, str], None]


def put(guest: Guest, state: str) -> None:
    """Bring a paused guest into a state (``start-paused`` is shut off until its backup)."""
    if state == "running":
        guest.resume()
    elif state != "paused":
        guest.shutdown_clean()


def take(engine: Engine, guest: Guest, state: str, sync: str) -> BackupResult:
    request = BackupRequest(
        domain=guest.domain.name(), sync=sync, start_paused=state == "start-paused"
    )
    result = backup(engine, request, Ties(uuid.uuid4().hex))
    assert isinstance(result, BackupResult)
    assert guest.is_active() == (state != "shut off")
    assert not guest.is_active() or guest.is_paused() == (state == "paused")
    assert_nothing_remains(engine, guest)
    return result


def disk(format_: str) -> DiskSpec:
    return DiskSpec("vda", "qcow2" if format_ == "qcow2" else "raw", 64 * MIB)


def reference(guest: Guest, directory: Path) -> Path:
    """The disk as it is now; a guest without a system writes nothing by itself."""
    path = directory / f"reference-{uuid.uuid4().hex}"
    if guest.is_active():
        guest.qemu_io("vda", "flush")
    shutil.copyfile(guest.image("vda"), path)
    return path


def equal(engine: Engine, result: BackupResult, expected: Path, format_: str) -> None:
    assert_same(image_of(engine, result), "qcow2", expected, format_)


@every_format
@every_state
def test_full(boot: Boot, engine: Engine, workdir: Path, state: str, format_: str) -> None:
    guest = boot(disk(format_))
    give_new_content(guest, 1)
    put(guest, state)
    expected = reference(guest, workdir)
    result = take(engine, guest, state, "full")
    assert (disk_of(result, "vda").sync, disk_of(result, "vda").reason) == ("full", "")
    equal(engine, result, expected, format_)


@every_format
@every_state
def test_incremental(
    boot: Boot, points: TakePoints, engine: Engine, workdir: Path, state: str, format_: str
) -> None:
    guest = boot(disk(format_))
    chain = points(guest)
    give_new_content(guest, 1)
    first = chain.take()
    give_new_content(guest, 2)
    guest.qemu_io("vda", "write -z 2M 256k")
    put(guest, state)
    expected = reference(guest, workdir)
    result = take(engine, guest, state, "incremental")
    done = disk_of(result, "vda")
    if format_ == "raw" and state in ("shut off", "start-paused"):
        assert done.sync == "full"
        assert "bitmaps live in QEMU's memory" in done.reason
    else:
        assert (done.sync, done.parent, done.reason) == ("incremental", first.point, "")
        assert done.transferred < 4 * MIB
    equal(engine, result, expected, format_)
    chain.prove_all()


@every_format
@every_state
def test_top(
    boot: Boot, points: TakePoints, engine: Engine, workdir: Path, state: str, format_: str
) -> None:
    """Over a backing image for qcow2; a raw disk has none, so its top is all of it."""
    guest = boot(disk(format_))
    give_new_content(guest, 1)
    below = guest.image("vda")
    chain = points(guest)
    parent = chain.take()
    overlay = workdir / "guest" / "overlay.qcow2"
    if format_ == "qcow2":
        snapshot(guest, "vda", overlay)
        guest.qemu_io("vda", "write -P 7 5M 64k")
        guest.qemu_io("vda", "write -z 2M 64k")
        expected = flat_copy(guest, "vda", overlay, workdir / "expected")
    else:
        expected = reference(guest, workdir)
    put(guest, state)
    result = take(engine, guest, state, "top")
    done = disk_of(result, "vda")
    equal(engine, result, expected, format_)
    if format_ == "raw":
        assert done.sync == "full"
        assert done.reason == "this raw disk has no backing image: its top is all of it"
        return
    assert (done.sync, done.parent, done.bitmap) == ("top", "", "")
    assert [(image.path, image.format) for image in done.backing] == [(str(below), "qcow2")]
    assert done.transferred < 4 * MIB
    # Beside the chain: the next incremental builds on what was there before.
    if state == "paused":
        again = chain.back_up()
        assert disk_of(again, "vda").parent == parent.point


@every_format
@every_state
def test_none(
    boot: Boot, points: TakePoints, engine: Engine, workdir: Path, state: str, format_: str
) -> None:
    guest = boot(disk(format_))
    give_new_content(guest, 1)
    put(guest, state)
    expected = reference(guest, workdir)
    if state == "shut off":
        with pytest.raises(NotSupported, match="shut off: nothing writes to its disks"):
            take(engine, guest, state, "none")
        return
    before = set(bitmaps(guest)) if guest.is_active() else set()
    with Open(engine, guest, start_paused=state == "start-paused") as export:
        give_new_content(guest, 2)
        seen = workdir / "seen"
        qemu_img("convert", "-f", "raw", "-O", "raw", export.urls["vda"], seen)
        assert_same(seen, "raw", expected, format_)
        result = export.close()
    assert [e.target for e in result.exports] == ["vda"]
    assert set(bitmaps(guest)) == before
    assert_nothing_remains(engine, guest)


# -- top: what it needs ----------------------------------------------------------------------------


@pytest.fixture
def top_point(
    boot: Boot, points: TakePoints, engine: Engine, workdir: Path
) -> tuple[Guest, BackupResult, Path]:
    guest = boot(disk("qcow2"))
    give_new_content(guest, 1)
    overlay = workdir / "guest" / "overlay.qcow2"
    snapshot(guest, "vda", overlay)
    give_new_content(guest, 2)
    expected = flat_copy(guest, "vda", overlay, workdir / "expected")
    result = points(guest).back_up(sync="top")
    return guest, result, expected


def bring_back(engine: Engine, result: BackupResult) -> RestoreResult:
    request = RestoreRequest(point=result.point, to="back", repository="main")
    return restore(engine, request, Ties(uuid.uuid4().hex))


def test_a_top_restores_to_the_disk_where_its_backing_image_may_be_read(
    top_point: tuple[Guest, BackupResult, Path], engine: Engine, workdir: Path
) -> None:
    guest, result, expected = top_point
    with pytest.raises(InvalidRequest, match="outside the backing_roots"):
        bring_back(engine, result)
    allowed = with_settings(engine, backing_roots=(str(guest.image("vda").parent),))
    restored = bring_back(allowed, result)
    assert_same(Path(restored.disks[0].path), "qcow2", expected, "qcow2")


@pytest.mark.parametrize("how", ["written to", "gone"])
def test_a_top_whose_backing_image_changed_is_refused(
    top_point: tuple[Guest, BackupResult, Path], engine: Engine, workdir: Path, how: str
) -> None:
    guest, result, _ = top_point
    below = guest.image("vda")
    allowed = with_settings(engine, backing_roots=(str(below.parent),))
    guest.power_off()
    if how == "gone":
        below.rename(workdir / "away")
    else:
        os.utime(below)
    with pytest.raises(RepositoryUnusable, match=f"needs {below}"):
        bring_back(allowed, result)
    assert not (workdir / "back").exists() or not list((workdir / "back").iterdir())
