"""``virtvault verify``: what is damaged is found, named, and never built or restored upon."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import MIB, Points, with_settings
from tests.integration.scenes import (
    VDA,
    VDB_RAW,
    Boot,
    TakePoints,
    disk_of,
    files,
    give_new_content,
    image_of,
    processes,
    qemu_img,
    snapshot,
    syncs,
)
from tests.lab import Guest, Hypervisor
from virtvault.errors import Cancelled, PointBad, RepositoryUnusable, UnknownPoint
from virtvault.models import (
    Progress,
    PruneRequest,
    RestoreRequest,
    Verdict,
    VerifyRequest,
    VerifyResult,
)
from virtvault.settings import RepositorySettings, Settings
from workers.engine import Engine, Ties
from workers.jobs import Detached
from workers.prune import prune
from workers.repository import manifest, open_repository, sidecar
from workers.restore import restore
from workers.verify import verify


@pytest.fixture(scope="module")
def taken(hypervisor: Hypervisor) -> Iterator[Points]:
    """A full and two incrementals of a qcow2 and a raw disk."""
    directory = Path(tempfile.mkdtemp(prefix="vvlab-", dir="/var/tmp"))
    directory.chmod(0o711)
    for name in ("repo", "guest"):
        (directory / name).mkdir()
    settings = Settings(
        host="lab",
        libvirt_uri=hypervisor.uri,
        state_dir=str(directory / "state"),
        runtime_dir=f"/run/{directory.name}",
        repositories={"main": RepositorySettings("main", str(directory / "repo"))},
    )
    connection = hypervisor.connect()
    with Guest(
        connection, directory / "guest", directory.name, [VDA, VDB_RAW], boot=False
    ) as guest:
        guest.start()
        made = Points(Engine.of(settings), guest, directory, [])
        for value in (1, 2, 3):
            give_new_content(guest, value)
            guest.qemu_io("vda", f"write -z {value * 5}M 1M")
            made.taken.append((made.back_up(), {}))
        yield made
    connection.close()
    shutil.rmtree(directory)
    shutil.rmtree(settings.runtime_dir)


@pytest.fixture
def chain(taken: Points, engine: Engine, workdir: Path) -> Points:
    """The points in a repository of the test's own."""
    shutil.copytree(taken.directory / "repo", workdir / "repo", dirs_exist_ok=True)
    return replace(taken, engine=engine, taken=list(taken.taken))


def run(engine: Engine, *points: str, **request: Any) -> VerifyResult:
    return verify(engine, VerifyRequest(points, **request), Ties(uuid.uuid4().hex))


def ids(chain: Points) -> list[str]:
    return [result.point for result, _ in chain.taken]


def said(result: VerifyResult) -> dict[str, str]:
    return {verdict.point: verdict.verdict for verdict in result.verdicts}


def stored(chain: Points, number: int) -> Verdict | None:
    return sidecar.verdict(image_of(chain.engine, chain.taken[number][0]).parent)


def statuses(chain: Points) -> dict[str, str]:
    repository = open_repository(chain.engine.settings, "main")
    uuid_ = chain.taken[0][0].uuid
    return {status.point: status.state for status in repository.statuses(uuid_)}


def assert_nothing_remains(engine: Engine) -> None:
    runtime, state = engine.settings.runtime_dir, engine.settings.state_dir
    assert not processes(f"{runtime}/")
    assert files(runtime, f"{state}/runs", engine.settings.scratch) == []


def flip(image: Path) -> None:
    """Change one bit of what the image holds; neither length nor structure show it."""
    content = bytearray(image.read_bytes())
    at = content.index(b"\x01" * 65536) + 1234
    content[at] ^= 4
    image.write_bytes(content)


# -- what is found ---------------------------------------------------------------------------------


def test_whole_points_are_good_and_each_image_is_read_once(chain: Points, engine: Engine) -> None:
    seen: list[Progress] = []
    request = VerifyRequest(tuple(ids(chain)))
    result = verify(engine, request, Ties("whole", seen.append))
    assert (result.state, set(said(result).values())) == ("good", {"good"})
    assert list(said(result)) == ids(chain)
    for number in range(3):
        verdict = stored(chain, number)
        assert verdict == result.verdicts[number]
        assert {d.target: d.verdict for d in verdict.disks} == {"vda": "good", "vdb": "good"}
    # 1 MiB + 64 KiB of data written to each, and two granules of each bitmap's witness.
    (full, second, third) = (v.disks[0].compared for v in result.verdicts)
    assert 0 < full < second < third < 8 * MIB
    last = seen[-1]
    total = sum(disk.total for disk in last.disks)
    images = [d for v in result.verdicts[-1:] for d in v.disks]
    assert (last.done, last.total) == (total, sum(d.compared for d in images))
    assert set(statuses(chain).values()) == {"ok"}
    assert verify(engine, request, Ties("whole")) == result
    assert_nothing_remains(engine)


def lost(image: Path) -> None:
    image.unlink()


def shortened(image: Path) -> None:
    os.truncate(image, image.stat().st_size - 65536)


def one_bit(image: Path) -> None:
    flip(image)


def structure(image: Path) -> None:
    """Point the first L2 table into nowhere, as a stray write to the file might."""
    content = bytearray(image.read_bytes())
    l1 = int.from_bytes(content[40:48])
    content[l1 : l1 + 8] = (1 << 63 | 1 << 40).to_bytes(8)
    image.write_bytes(content)


def points_elsewhere(image: Path) -> None:
    length = image.stat().st_size
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", image)
    os.truncate(image, length)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lost, "is not there"),
        (shortened, "bytes long and not"),
        (one_bit, "is not what it was: 1 of"),
        (structure, "is damaged: qemu-img check finds"),
        (points_elsewhere, "points to /etc/passwd"),
    ],
)
def test_a_damaged_image_makes_its_point_and_all_that_stand_on_it_bad_until_it_is_mended(
    chain: Points, engine: Engine, damage: Callable[[Path], None], words: str
) -> None:
    full, second, third = ids(chain)
    image = image_of(engine, chain.taken[0][0])
    before = image.read_bytes()
    damage(image)
    # Asked of the newest alone: what it stands on is named, and marked, too.
    result = run(engine, third)
    assert (result.state, said(result)) == ("bad", {full: "bad", second: "bad", third: "bad"})
    owner, _, newest = result.verdicts
    assert words in owner.detail and owner.detail.startswith("disk vda: ")
    assert owner.breaks == (second, third)
    assert newest.detail.startswith(f"disk vda: stands on point {full}, which is bad: ")
    # Its other disk was read as well, and is whole.
    assert {d.target: d.verdict for d in newest.disks} == {"vda": "bad", "vdb": "good"}
    assert statuses(chain) == dict.fromkeys(ids(chain), "bad")
    repository = open_repository(engine.settings, "main")
    with pytest.raises((PointBad, RepositoryUnusable)):
        repository.chain(repository.find(third), "vda")
    assert repository.chain(repository.find(third), "vdb")

    image.write_bytes(before)
    result = run(engine, *ids(chain))
    assert (result.state, set(said(result).values())) == ("good", {"good"})
    assert set(statuses(chain).values()) == {"ok"}
    assert repository.chain(repository.find(third), "vda")
    assert_nothing_remains(engine)


def test_a_damaged_incremental_leaves_what_is_below_it_alone(chain: Points, engine: Engine) -> None:
    full, second, third = ids(chain)
    image = image_of(engine, chain.taken[1][0])
    content = bytearray(image.read_bytes())
    content[content.index(b"\x02" * 65536)] = 0
    image.write_bytes(content)
    result = run(engine, *ids(chain))
    assert said(result) == {full: "good", second: "bad", third: "bad"}
    assert result.verdicts[1].breaks == (third,)
    assert statuses(chain) == {full: "ok", second: "bad", third: "bad"}


def test_manifests_and_xml_are_looked_at_too(chain: Points, engine: Engine) -> None:
    full, second, third = ids(chain)
    text = image_of(engine, chain.taken[1][0]).parent / manifest.FILE
    before = text.read_text()
    text.write_text(before.replace('"sync": "incremental"', '"sync": "full"'))
    result = run(engine, *ids(chain))
    assert said(result) == {full: "good", second: "bad", third: "bad"}
    assert "was altered" in result.verdicts[1].detail
    assert "was altered" in result.verdicts[2].detail
    text.write_text(before)
    (text.parent / "domain.xml").write_text("<domain><name>cut o")
    result = run(engine, *ids(chain))
    assert said(result) == {full: "good", second: "bad", third: "good"}
    assert "domain.xml cannot be used" in result.verdicts[1].detail
    # Its disks are whole: what stands on them is.
    assert {d.verdict for d in result.verdicts[1].disks} == {"good"}


def no_list(directory: Path) -> None:
    for path in directory.glob("vda.*.digests"):
        path.unlink()


def of_version_1(directory: Path) -> None:
    """As the first version of virtvault wrote it, which kept no digests."""
    content = json.loads((directory / manifest.FILE).read_text())
    del content["seal"]
    content["schema_version"] = 1
    content["disks"] = [{k: v for k, v in d.items() if k != "digests"} for d in content["disks"]]
    (directory / manifest.FILE).write_text(json.dumps(content))


def pruning(directory: Path) -> None:
    sidecar.write(directory, sidecar.PRUNING, {})


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        (no_list, "The digests "),
        (of_version_1, "kept no digests"),
        (pruning, "is being pruned"),
    ],
)
def test_what_cannot_be_proven_is_said_to_be_unproven(
    chain: Points, engine: Engine, lacking: Callable[[Path], None], words: str
) -> None:
    full, second, third = ids(chain)
    lacking(image_of(engine, chain.taken[1][0]).parent)
    result = run(engine, *ids(chain))
    assert result.state == "good"
    assert said(result) == {full: "good", second: "unproven", third: "unproven"}
    assert words in result.verdicts[1].detail
    assert result.verdicts[2].detail.startswith(f"disk vda: stands on point {second}: ")
    if lacking is not pruning:
        assert set(statuses(chain).values()) == {"ok"}


def test_a_top_is_good_while_the_images_it_stands_on_are_what_they_were(
    boot: Boot, points: TakePoints, engine: Engine, workdir: Path
) -> None:
    guest = boot(VDA)
    give_new_content(guest, 1)
    snapshot(guest, "vda", workdir / "guest" / "overlay.qcow2")
    give_new_content(guest, 2)
    made = points(guest).back_up(sync="top")
    assert syncs(made) == {"vda": "top"}
    point = made.point
    here = with_settings(engine, backing_roots=(str(workdir / "guest"),))
    assert said(run(here, point)) == {point: "good"}
    (verdict,) = run(engine, point).verdicts
    assert verdict.verdict == "unproven" and "outside the backing_roots" in verdict.detail
    os.utime(guest.image("vda"))
    elsewhere = with_settings(here, host="other")
    assert said(run(elsewhere, point)) == {point: "unproven"}
    (verdict,) = run(here, point).verdicts
    assert verdict.verdict == "bad" and "was written to since" in verdict.detail


def test_what_a_prune_has_merged_is_proven_by_its_new_digests(
    chain: Points, engine: Engine
) -> None:
    _, second, third = ids(chain)
    assert run(engine, *ids(chain)).state == "good"
    pruned = prune(engine, PruneRequest(points=(second,)), Ties("p1"))
    assert [removed.point for removed in pruned.removed] == [second]
    result = run(engine, third)
    assert said(result) == {third: "good"}
    flip(image_of(engine, chain.taken[0][0]))
    assert said(run(engine, third))[third] == "bad"


def test_a_prune_in_the_middle_of_it_condemns_nothing(chain: Points, engine: Engine) -> None:
    _, second, third = ids(chain)
    pruned: list[str] = []

    def prune_once(progress: Progress) -> None:
        run_ = engine.journal.read("t1")
        if run_ is not None and run_.draft["layers"] and not pruned:
            pruned.append(second)
            prune(engine, PruneRequest(points=(second,)), Ties("p1"))

    result = verify(engine, VerifyRequest((second, third)), Ties("t1", prune_once))
    assert pruned == [second]
    assert result.state == "good"
    assert said(result)[second] == "unproven"
    assert "pruned" in result.verdicts[0].detail
    assert set(statuses(chain).values()) == {"ok"}
    assert said(run(engine, third)) == {third: "good"}


def test_a_repository_that_is_away_condemns_nothing(chain: Points, engine: Engine) -> None:
    repository = Path(engine.settings.repositories["main"].path)
    uuid_ = chain.taken[0][0].uuid

    def unmount(progress: Progress) -> None:
        if progress.phase == "verifying" and repository.exists():
            repository.rename(repository.with_name("away"))

    with pytest.raises(RepositoryUnusable, match="is not a directory"):
        verify(engine, VerifyRequest(tuple(ids(chain))), Ties("away", unmount))
    repository.with_name("away").rename(repository)
    assert not list((repository / uuid_).glob(f"*/{sidecar.VERDICT}"))
    assert_nothing_remains(engine)
    with pytest.raises(UnknownPoint, match="has no point 20000101T000000Z-00000000"):
        run(engine, "20000101T000000Z-00000000")


# -- on the way ------------------------------------------------------------------------------------


def test_a_verify_is_cancelled_or_goes_on_with_what_was_left(chain: Points, engine: Engine) -> None:
    seen: list[str] = []

    def look(progress: Progress) -> None:
        seen.append(progress.phase)

    def crawl(task: str, stop: Callable[[], None], stopping: threading.Event) -> BaseException:
        """Run at a speed at which it cannot end, until the first image is done."""

        def step(progress: Progress) -> None:
            run_ = engine.journal.read(task)
            if run_ is not None and run_.draft["layers"]:
                stop()

        request = VerifyRequest(tuple(ids(chain)), speed=4 * MIB)
        with pytest.raises((Cancelled, Detached)) as caught:
            verify(engine, request, Ties(task, step, stopping.is_set))
        return caught.value

    stopping = threading.Event()
    wish = engine.journal.wishes("t1")
    assert isinstance(crawl("t1", wish.touch, stopping), Cancelled)
    assert_nothing_remains(engine)
    assert stored(chain, 0) is None

    assert isinstance(crawl("t2", stopping.set, stopping), Detached)
    left = engine.journal.read("t2")
    assert left is not None and len(left.draft["layers"]) == 1
    # What was proven is not read again: a digest list that is gone since is not missed.
    key = next(iter(left.draft["layers"]))
    for path in image_of(engine, chain.taken[0][0]).parent.glob(f"{key.split()[1]}.*.digests"):
        path.unlink()
    result = verify(engine, VerifyRequest(tuple(ids(chain))), Ties("t2", look))
    assert set(said(result).values()) == {"good"}
    assert_nothing_remains(engine)


# -- what comes of it ------------------------------------------------------------------------------


def test_after_a_point_is_found_bad_the_next_is_a_full_and_no_restore_takes_it(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA, VDB_RAW)
    chain = points(guest)
    give_new_content(guest, 1)
    first = chain.take()
    give_new_content(guest, 2)
    second = chain.take()
    image = image_of(engine, second)
    content = bytearray(image.read_bytes())
    content[content.index(b"\x02" * 65536)] = 0
    image.write_bytes(content)
    assert said(run(engine, second.point)) == {second.point: "bad"}
    give_new_content(guest, 3)
    third = chain.take()
    assert syncs(third) == {"vda": "full", "vdb": "incremental"}
    reason = f"point {second.point} was found bad by a verify on"
    assert reason in disk_of(third, "vda").reason
    assert said(run(engine, first.point, third.point)) == {
        first.point: "good",
        third.point: "good",
    }
    del chain.taken[1]
    chain.prove_all()
    with pytest.raises(PointBad, match="was found bad"):
        restore(engine, RestoreRequest(second.point, to="out"), Ties("t1"))
    forced = RestoreRequest(second.point, to="out", force=True)
    assert restore(engine, forced, Ties("t2")).state == "complete"
