"""A disk restored into an RBD image of a real Ceph is what it was, or there is no image."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.conftest import MIB, with_settings
from tests.integration.scenes import until
from tests.integration.stored import SIZE, Stored
from tests.integration.test_restore import Restoring, hurry, own_event_loop
from tests.lab import ceph as lab
from tests.lab.ceph import Ceph
from virtvault.errors import (
    Cancelled,
    DestinationExists,
    InvalidRequest,
    NotReachable,
    NotSupported,
    VirtvaultError,
)
from virtvault.models import RestoreRequest, RestoreResult
from workers.engine import Engine, Ties, tag_of
from workers.jobs import Detached
from workers.restore import restore
from workers.restore.rbd import Image

__all__ = ["own_event_loop"]

WEB = {"vda": "rbd:vv/web"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Ceph]:
    """A cluster that forgets those who were killed after two seconds instead of thirty."""
    quicker = f"{lab.CONF}osd_client_watch_timeout = 2\n"  # its last section is the osd's
    with (
        tempfile.TemporaryDirectory(prefix="vvceph-", dir="/var/tmp") as directory,
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setattr(lab, "CONF", quicker)
        Path(directory).chmod(0o711)
        with Ceph(Path(directory) / "ceph") as started:
            yield started


@pytest.fixture
def ceph(cluster: Ceph, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ceph]:
    """The cluster, which the worker's environment names."""
    monkeypatch.setenv("CEPH_CONF", str(cluster.conf))
    yield cluster
    for image in cluster.rbd("ls", cluster.pool).split():
        cluster.remove(image)


@pytest.fixture
def stored(workdir: Path) -> Iterator[Stored]:
    """A full and an incremental point of a disk whose size is no multiple of anything."""
    made = Stored(workdir / "stored")
    made.chain(2)
    yield made
    made.close()


@pytest.fixture
def engine(stored: Stored, workdir: Path) -> Engine:
    allowed = {"restore_roots": (str(workdir / "roots"),), "restore_devices": ("rbd:vv",)}
    return with_settings(stored.engine, **allowed)


def images(ceph: Ceph) -> list[str]:
    return sorted(ceph.rbd("ls", ceph.pool).split())


def run(engine: Engine, point: str, task: str = "", **request: object) -> RestoreResult:
    wanted = RestoreRequest(point=point, **{"devices": WEB, **request})  # type: ignore[arg-type]
    return restore(engine, wanted, Ties(task or uuid.uuid4().hex))


def crawl(engine: Engine, point: str) -> Restoring:
    """A restore into rbd:vv/web that is far from its end."""
    crawling = Restoring(engine, point, "")
    crawling.request = replace(crawling.request, devices=WEB, speed=64 * 1024)
    return crawling


def partial_of(task: str) -> str:
    return f".web.{tag_of(task)}.partial"


def test_full_and_incremental_points_become_images_of_the_same_bytes_and_take_no_room_for_zeroes(
    stored: Stored, engine: Engine, ceph: Ceph
) -> None:
    stored.take(content="write -z 0 4M")
    for number, point in enumerate(stored.ids()):
        result = run(engine, point, devices={"vda": f"rbd:vv/web-{number}"})
        disk = result.disks[0]
        assert (disk.path, disk.format) == (f"rbd:vv/web-{number}", "raw")
        assert disk.virtual_size == SIZE
        assert ceph.read(f"web-{number}") == stored.content[point, "vda"]
        info = json.loads(ceph.rbd("info", "--format=json", f"vv/web-{number}"))
        assert info["size"] == SIZE
    # What is not there, and what was zeroed; an object of Ceph's is 4 MiB.
    used = json.loads(ceph.rbd("du", "--format=json", "vv/web-2"))["images"][0]["used_size"]
    assert used == 0
    assert images(ceph) == ["web-0", "web-1", "web-2"]


def test_one_disk_becomes_an_image_and_the_other_a_file(workdir: Path, ceph: Ceph) -> None:
    stored = Stored(workdir / "two", targets=("vda", "vdb"))
    point = stored.take()
    roots = (str(workdir / "roots"),)
    engine = with_settings(stored.engine, restore_roots=roots, restore_devices=("rbd:vv",))
    result = run(engine, point, to="out", format="raw")
    assert [d.path for d in result.disks] == ["rbd:vv/web", str(workdir / "roots/out/vdb.raw")]
    assert ceph.read("web") == stored.content[point, "vda"]
    with pytest.raises(InvalidRequest, match="to one place: vda=rbd:vv/web, vdb=rbd:vv/web"):
        run(engine, point, devices=WEB | {"vdb": "rbd:vv/web"})
    stored.close()


def test_what_must_not_be_is_refused_and_nothing_is_made(
    stored: Stored, engine: Engine, ceph: Ceph, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = stored.ids()[0]
    ceph.create("mine", MIB)

    def refused(kind: type[VirtvaultError], match: str, place: str, **request: object) -> None:
        with pytest.raises(kind, match=match) as caught:
            run(engine, point, devices={"vda": place}, **request)
        assert type(caught.value) is kind
        assert caught.value.mend
        assert "left" not in caught.value.message
        assert not engine.journal.all()

    for force in (False, True):
        refused(DestinationExists, "Already there: rbd:vv/mine", "rbd:vv/mine", force=force)
    refused(InvalidRequest, "pool other is not among", "rbd:other/web")
    refused(InvalidRequest, "pool v is not among", "rbd:v/web")
    refused(InvalidRequest, "not defined on RBD images", "rbd:vv/web", name="vm2")
    for smuggled in (
        "rbd:vv/web:conf=/tmp/evil.conf",
        "rbd:vv/web:id=admin",
        "rbd:vv/web@snapshot",
        "rbd:vv/web;x",
        "rbd:vv/space/web",
        "rbd:vv/--pool=other",
        "rbd:vv/.web",
        "rbd:vv/web\n",
        "rbd:vv/" + "w" * 97,
        "rbd:vv",
    ):
        refused(InvalidRequest, "is not rbd:POOL/IMAGE", smuggled)
    assert images(ceph) == ["mine"]
    elsewhere = with_settings(engine, restore_devices=("rbd:none",))
    with pytest.raises(InvalidRequest, match="the cluster has no pool none"):
        run(elsewhere, point, devices={"vda": "rbd:none/web"})
    with monkeypatch.context() as without, pytest.raises(NotSupported, match="no `rbd`") as caught:
        without.setenv("PATH", str(ceph.directory))
        Image("vv", "web", "tag").require()
    assert "ceph-common" in caught.value.mend


def test_a_cluster_that_does_not_answer_is_said_in_time(
    stored: Stored, engine: Engine, ceph: Ceph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.restore.rbd.LIMITS", ("--client-mount-timeout=1",))
    gone = ceph.directory / "gone.conf"
    gone.write_text("[global]\nmon_host = [v2:127.0.0.1:1/0]\nauth_client_required = none\n")
    monkeypatch.setenv("CEPH_CONF", str(gone))
    with pytest.raises(NotReachable, match="rbd:vv/web: the cluster does not answer") as caught:
        run(engine, stored.ids()[0])
    assert "CEPH_CONF" in caught.value.mend
    assert "left" not in caught.value.message


def test_the_user_of_the_workers_ceph_args_is_who_writes(
    stored: Stored, engine: Engine, ceph: Ceph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the user `backup` finds the cluster by this configuration."""
    text = ceph.conf.read_text()
    mon_host = next(line for line in text.splitlines() if line.startswith("mon_host"))
    theirs = ceph.directory / "theirs.conf"
    theirs.write_text(text.replace(mon_host, "") + f"[client.backup]\n{mon_host}\n")
    monkeypatch.setenv("CEPH_CONF", str(theirs))
    monkeypatch.setenv("CEPH_ARGS", "--id backup")
    run(engine, stored.ids()[0])
    monkeypatch.setenv("CEPH_CONF", str(ceph.conf))
    monkeypatch.delenv("CEPH_ARGS")
    assert ceph.read("web") == stored.content[stored.ids()[0], "vda"]


def test_a_cancelled_restore_leaves_no_image(stored: Stored, engine: Engine, ceph: Ceph) -> None:
    with crawl(engine, stored.ids()[1]) as restoring:
        assert images(ceph) == [partial_of(restoring.task_id)]
        engine.journal.wishes(restoring.task_id).touch()
        assert isinstance(restoring.raised(), Cancelled)
    assert images(ceph) == []
    assert not engine.journal.all()


def test_a_detached_restore_goes_on_and_the_same_task_finishes_it(
    stored: Stored, engine: Engine, ceph: Ceph
) -> None:
    with crawl(engine, stored.ids()[1]) as restoring:
        identity = engine.journal.all()[0].draft["identities"]["vda"]
        restoring.stopping.set()
        assert isinstance(restoring.raised(), Detached)
    hurry(engine, restoring.task_id)
    restore(Engine.of(engine.settings), restoring.request, Ties(restoring.task_id))
    assert images(ceph) == ["web"]
    # What the first worker began, not something anew.
    assert json.loads(ceph.rbd("info", "--format=json", "vv/web"))["id"] == identity
    assert ceph.read("web") == stored.content[stored.ids()[1], "vda"]


def test_a_restore_whose_daemon_was_killed_with_the_worker_begins_anew(
    stored: Stored, engine: Engine, ceph: Ceph
) -> None:
    with crawl(engine, stored.ids()[1]) as restoring:
        restoring.stopping.set()
        assert isinstance(restoring.raised(), Detached)
        pid = restoring.daemon_pid()
        os.kill(pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{pid}/exe").exists(), "the daemon's end")
    run(engine, stored.ids()[1], restoring.task_id)
    assert images(ceph) == ["web"]
    assert ceph.read("web") == stored.content[stored.ids()[1], "vda"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_worker_killed_about_the_rename_is_followed_by_one_that_ends_it(
    stored: Stored, engine: Engine, ceph: Ceph, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    publish = Image.publish

    def dies(self: Image, identity: str) -> None:
        if moment == "after":
            publish(self, identity)
        raise Detached  # nothing is undone on its way out, as after a SIGKILL

    task = uuid.uuid4().hex
    with monkeypatch.context() as patched:
        patched.setattr(Image, "publish", dies)
        with pytest.raises(Detached):
            run(engine, stored.ids()[1], task)
    assert images(ceph) == ["web" if moment == "after" else partial_of(task)]
    if moment == "after":
        run(Engine.of(engine.settings), stored.ids()[1], task)
        assert ceph.read("web") == stored.content[stored.ids()[1], "vda"]
        return
    # Somebody was faster: theirs is not touched, and ours goes.
    ceph.create("web", MIB)
    with pytest.raises(DestinationExists, match="Already there: rbd:vv/web"):
        run(Engine.of(engine.settings), stored.ids()[1], task)
    assert images(ceph) == ["web"]
    assert json.loads(ceph.rbd("info", "--format=json", "vv/web"))["size"] == MIB
