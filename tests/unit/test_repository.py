"""A repository in a directory: points appear whole or not at all, and chains are checked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from virtvault.errors import RepositoryUnusable, UnknownPoint, UnknownRepository
from virtvault.models import MANIFEST_VERSION, Point, PointDisk
from virtvault.settings import RepositorySettings, Settings
from workers.images import require_own_backing
from workers.repository import DirectoryRepository, manifest, open_repository
from workers.repository.directory import create_image

UUID = "12345678-1234-1234-1234-123456789abc"
FIRST = "20260101T000000Z-11111111"
SECOND = "20260102T000000Z-22222222"
THIRD = "20260103T000000Z-33333333"
SIZE = 2**20
# Of the guest's disks when those points were taken.
CONTENT_OF_VERSION_1 = {
    ("20261123T182659", "vda"): "561f750e",
    ("20261123T182659", "vdb"): "a11f004d",
    ("20261123T182701", "vda"): "8ad13859",
    ("20261123T182701", "vdb"): "68c9e0c1",
}


@pytest.fixture
def repository(tmp_path: Path) -> DirectoryRepository:
    (tmp_path / "repo").mkdir()
    return opened(tmp_path)


def opened(directory: Path) -> DirectoryRepository:
    return DirectoryRepository(
        RepositorySettings("main", str(directory / "repo")), str(directory / "state")
    )


def point_of(repository: DirectoryRepository, id_: str, parent: str, length: int) -> Point:
    when = "2026-01-01T00:00:00.000Z"
    disk = PointDisk(
        target="vda",
        file="vda.qcow2",
        sync="incremental" if parent else "full",
        parent=parent,
        reason="",
        virtual_size=SIZE,
        transferred=0,
        stored=0,
        length=length,
        source="/images/a.qcow2",
        source_format="qcow2",
        bitmap="b",
        persistent=True,
    )
    return Point(
        id=id_,
        repository=repository.name,
        repository_id=repository.id,
        task_id=f"task-{id_}",
        domain="web",
        uuid=UUID,
        host="hv1",
        instant=when,
        started=when,
        finished=when,
        consistency="crash-consistent",
        paused_ms=0.0,
        frozen_ms=0.0,
        isolated=True,
        disks=(disk,),
    )


def store(repository: DirectoryRepository, id_: str, parent: str = "") -> Point:
    partial = repository.begin(UUID, id_, "<domain/>")
    image = partial / "vda.qcow2"
    create_image(image, SIZE, backing=f"../{parent}/vda.qcow2" if parent else "")
    point = point_of(repository, id_, parent, image.stat().st_size)
    repository.commit(point)
    return point


def test_the_identity_is_given_once_and_stays_wherever_it_is_mounted(
    repository: DirectoryRepository, tmp_path: Path
) -> None:
    assert len(repository.id) == 8
    assert opened(tmp_path).id == repository.id
    (tmp_path / "repo").rename(tmp_path / "moved")
    moved = DirectoryRepository(
        RepositorySettings("other", str(tmp_path / "moved")), str(tmp_path / "another-worker")
    )
    assert moved.id == repository.id
    assert [path.name for path in (tmp_path / "moved").iterdir()] == ["repository.json"]


def test_of_many_first_users_all_have_the_identity_of_one(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    settings = RepositorySettings("main", str(tmp_path / "repo"))
    together = threading.Barrier(8)
    found: list[str] = []

    def use(number: int) -> None:
        together.wait(10)
        found.append(DirectoryRepository(settings, str(tmp_path / f"state-{number}")).id)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert set(found) == {opened(tmp_path).id}
    assert [path.name for path in (tmp_path / "repo").iterdir()] == ["repository.json"]


def test_a_repository_that_was_there_and_is_not_mounted_is_refused_and_not_begun_anew(
    repository: DirectoryRepository, tmp_path: Path
) -> None:
    (tmp_path / "repo").rename(tmp_path / "unmounted")
    (tmp_path / "repo").mkdir()
    with pytest.raises(RepositoryUnusable, match="is not mounted or was emptied"):
        opened(tmp_path)
    assert list((tmp_path / "repo").iterdir()) == []
    DirectoryRepository(RepositorySettings("other", str(tmp_path / "repo")), str(tmp_path / "x"))
    with pytest.raises(RepositoryUnusable, match=f"not {repository.id} as before"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is damaged"),
        ("[1]", "is damaged"),
        ("{}", "is damaged"),
        ('{"schema_version": 2, "id": "01234567"}', "is of a newer version"),
    ],
)
def test_an_identity_that_cannot_be_read_is_refused_and_kept(
    repository: DirectoryRepository, tmp_path: Path, text: str, words: str
) -> None:
    (repository.path / "repository.json").write_text(text)
    with pytest.raises(RepositoryUnusable, match=words) as caught:
        opened(tmp_path)
    assert caught.value.mend
    assert (repository.path / "repository.json").read_text() == text


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    for make in (lambda path: None, lambda path: path.write_text("x")):
        make(tmp_path / "repo")
        with pytest.raises(RepositoryUnusable, match="is not a directory"):
            opened(tmp_path)


def test_a_repository_that_is_not_configured_is_told_with_those_that_are(tmp_path: Path) -> None:
    settings = Settings(
        host="hv1",
        state_dir=str(tmp_path / "state"),
        repositories={"main": RepositorySettings("main", str(tmp_path))},
    )
    assert open_repository(settings, "").name == "main"
    with pytest.raises(UnknownRepository, match="hv1 has no repository 'other'") as caught:
        open_repository(settings, "other")
    assert "main" in caught.value.mend


def test_a_point_is_seen_only_once_it_is_committed(repository: DirectoryRepository) -> None:
    partial = repository.begin(UUID, FIRST, "<domain/>")
    create_image(partial / "vda.qcow2", SIZE)
    assert repository.points(UUID) == []
    assert repository.of_task(UUID, FIRST, f"task-{FIRST}") is None
    point = point_of(repository, FIRST, "", (partial / "vda.qcow2").stat().st_size)
    assert repository.commit(point) == repository.directory(UUID, FIRST)
    assert not partial.exists()
    assert repository.points(UUID) == [point]
    assert repository.find(FIRST) == point
    assert repository.of_task(UUID, FIRST, f"task-{FIRST}") == point
    assert repository.of_task(UUID, FIRST, "another") is None


def test_beginning_again_starts_from_nothing(repository: DirectoryRepository) -> None:
    (repository.begin(UUID, FIRST, "<domain/>") / "left-over").touch()
    partial = repository.begin(UUID, FIRST, "<domain/>")
    assert [path.name for path in partial.iterdir()] == ["domain.xml"]


def test_a_commit_without_its_image_publishes_nothing(repository: DirectoryRepository) -> None:
    partial = repository.begin(UUID, FIRST, "<domain/>")
    with pytest.raises(RepositoryUnusable, match="No such file"):
        repository.commit(point_of(repository, FIRST, "", 1))
    assert partial.exists()
    assert repository.points(UUID) == []


def test_a_commit_never_replaces_a_point(repository: DirectoryRepository) -> None:
    kept = store(repository, FIRST)
    with pytest.raises(RepositoryUnusable):
        store(repository, FIRST)
    assert repository.points(UUID) == [kept]


def test_a_commit_that_may_not_be_durable_is_taken_back(
    repository: DirectoryRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = repository.begin(UUID, FIRST, "<domain/>")
    create_image(partial / "vda.qcow2", SIZE)
    point = point_of(repository, FIRST, "", (partial / "vda.qcow2").stat().st_size)
    fsync = os.fsync

    def fails_after_the_rename(descriptor: int) -> None:
        if repository.directory(UUID, FIRST).exists():
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails_after_the_rename)
    with pytest.raises(RepositoryUnusable, match="Input/output error"):
        repository.commit(point)
    assert repository.points(UUID) == []
    assert partial.exists()


def test_what_is_committed_was_synced_before_it_is_seen(
    repository: DirectoryRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = repository.begin(UUID, FIRST, "<domain/>")
    create_image(partial / "vda.qcow2", SIZE)
    point = point_of(repository, FIRST, "", (partial / "vda.qcow2").stat().st_size)
    order: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        order.append(f"rename to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    repository.commit(point)
    assert order == [
        "vda.qcow2",
        ".manifest.json.new",
        partial.name,
        f"rename to {FIRST}",
        UUID,
    ]


def test_points_are_listed_oldest_first_and_a_damaged_one_is_left_out(
    repository: DirectoryRepository,
) -> None:
    for id_, parent in ((SECOND, ""), (FIRST, ""), (THIRD, SECOND)):
        store(repository, id_, parent)
    assert [point.id for point in repository.points(UUID)] == [FIRST, SECOND, THIRD]
    path = repository.directory(UUID, SECOND) / manifest.FILE
    path.write_text(path.read_text()[:-20])
    assert [point.id for point in repository.points(UUID)] == [FIRST, THIRD]
    with pytest.raises(RepositoryUnusable, match=f"{SECOND}/manifest.json"):
        repository.find(SECOND)
    with pytest.raises(UnknownPoint, match="has no point") as caught:
        repository.find("20200101T000000Z-00000000")
    assert caught.value.mend
    assert repository.points("00000000-0000-0000-0000-000000000000") == []


def test_a_chain_runs_from_a_point_down_to_its_full(repository: DirectoryRepository) -> None:
    store(repository, FIRST)
    store(repository, SECOND, FIRST)
    third = store(repository, THIRD, SECOND)
    chain = repository.chain(third, "vda")
    assert chain == [
        repository.directory(UUID, id_) / "vda.qcow2" for id_ in (THIRD, SECOND, FIRST)
    ]
    parents = repository.parents(UUID, "vda")
    assert {id_: parent.trouble for id_, parent in parents.items()} == {
        FIRST: "",
        SECOND: "",
        THIRD: "",
    }
    assert repository.parents(UUID, "vdb") == {}


def test_every_point_above_a_broken_link_is_in_trouble(repository: DirectoryRepository) -> None:
    store(repository, FIRST)
    store(repository, SECOND, FIRST)
    third = store(repository, THIRD, SECOND)

    def troubles() -> list[bool]:
        return [bool(p.trouble) for p in repository.parents(UUID, "vda").values()]

    image = repository.directory(UUID, SECOND) / "vda.qcow2"
    length = image.stat().st_size
    os.truncate(image, length + 512)
    assert troubles() == [False, True, True]
    with pytest.raises(RepositoryUnusable, match=f"{length + 512} bytes long and not {length}"):
        repository.chain(third, "vda")
    image.unlink()
    assert troubles() == [False, True, True]
    with pytest.raises(RepositoryUnusable, match="which is not there") as caught:
        repository.chain(third, "vda")
    assert caught.value.mend
    shutil.rmtree(repository.directory(UUID, FIRST))
    assert troubles() == [True, True]


def test_a_chain_that_bites_its_tail_is_no_chain(repository: DirectoryRepository) -> None:
    first = store(repository, FIRST)
    second = store(repository, SECOND, FIRST)
    looped = replace(first, disks=(replace(first.disks[0], sync="incremental", parent=SECOND),))
    path = repository.directory(UUID, FIRST) / manifest.FILE
    path.write_text(manifest.text(looped))
    assert all(parent.trouble for parent in repository.parents(UUID, "vda").values())
    with pytest.raises(RepositoryUnusable):
        repository.chain(second, "vda")


def test_a_manifest_is_the_same_after_being_read(repository: DirectoryRepository) -> None:
    point = store(repository, FIRST)
    assert manifest.read(repository.directory(UUID, FIRST)) == point


def _resealed(data: dict[str, Any]) -> dict[str, Any]:
    """As somebody would who knows the format."""
    content = {key: value for key, value in data.items() if key != "seal"}
    return {**content, "seal": manifest._seal(content)}


DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "cut off": (lambda text: text[: len(text) // 2], "it was cut off, or is no JSON"),
    "empty": (lambda text: "", "it was cut off, or is no JSON"),
    "no text": (lambda text: "\0" * len(text), "it was cut off, or is no JSON"),
    "a list": (lambda text: f"[{text}]", "it is no JSON object"),
    "altered": (lambda text: text.replace('"host": "hv1"', '"host": "hv2"'), "its seal does not"),
    "seal gone": (lambda text: _changed(text, "seal"), "its seal does not fit"),
    "version gone": (lambda text: _changed(text, "schema_version"), "its seal does not fit"),
    "made version 1": (lambda text: _changed(text, schema_version=1), "seal"),
    "newer": (
        lambda text: _changed(text, schema_version=MANIFEST_VERSION + 1, surprise=1),
        f"it is of version {MANIFEST_VERSION + 1}, and this virtvault reads up to "
        f"{MANIFEST_VERSION}; upgrade virtvault",
    ),
    "unknown field": (
        lambda text: json.dumps(_resealed({**json.loads(text), "surprise": 1})),
        "surprise: unknown field",
    ),
    "path in a file name": (
        lambda text: json.dumps(_resealed(_with_file(json.loads(text), "../../x.qcow2"))),
        "must be a plain file name",
    ),
}


def _changed(text: str, *gone: str, **values: object) -> str:
    data = {**json.loads(text), **values}
    return json.dumps({key: value for key, value in data.items() if key not in gone})


def _with_file(data: dict[str, Any], file: str) -> dict[str, Any]:
    return {**data, "disks": [{**disk, "file": file} for disk in data["disks"]]}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_manifest_that_is_not_what_was_written_is_told_skipped_and_breaks_its_chain(
    repository: DirectoryRepository, damage: str
) -> None:
    change, words = DAMAGE[damage]
    first = store(repository, FIRST)
    store(repository, SECOND, FIRST)
    third = store(repository, THIRD, SECOND)
    path = repository.directory(UUID, SECOND) / manifest.FILE
    path.write_text(change(path.read_text()))

    with pytest.raises(RepositoryUnusable) as caught:
        repository.find(SECOND)
    assert words in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.mend

    points, troubles = repository.scan(UUID)
    assert points == [first, third]
    assert words in troubles[SECOND]
    told = {status.point: status for status in repository.statuses(UUID)}
    assert {id_: status.state for id_, status in told.items()} == {
        FIRST: "ok",
        SECOND: "broken",
        THIRD: "broken",
    }
    assert words in told[SECOND].why
    assert f"needs point {SECOND}" in told[THIRD].why
    assert [bool(p.trouble) for p in repository.parents(UUID, "vda").values()] == [False, True]
    with pytest.raises(RepositoryUnusable, match=f"needs point {SECOND}"):
        repository.chain(third, "vda")
    repository.chain(first, "vda")


def test_a_manifest_in_another_points_directory_is_told(repository: DirectoryRepository) -> None:
    store(repository, FIRST)
    store(repository, SECOND)
    shutil.copy(
        repository.directory(UUID, FIRST) / manifest.FILE, repository.directory(UUID, SECOND)
    )
    with pytest.raises(RepositoryUnusable, match=f"it is that of {UUID}/{FIRST}"):
        repository.find(SECOND)
    points, troubles = repository.scan(UUID)
    assert [point.id for point in points] == [FIRST]
    assert f"it is that of {UUID}/{FIRST}" in troubles[SECOND]


@pytest.fixture
def of_version_1(tmp_path: Path) -> DirectoryRepository:
    """A repository as virtvault wrote it before manifests had seals and images digests."""
    with tarfile.open(Path(__file__).with_name("repository_v1.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return opened(tmp_path)


def test_a_repository_of_version_1_is_read_as_it_is(of_version_1: DirectoryRepository) -> None:
    (uuid,) = of_version_1.domains()
    points, troubles = of_version_1.scan(uuid)
    assert troubles == {}
    assert {point.schema_version for point in points} == {1}
    assert [status.state for status in of_version_1.statuses(uuid)] == ["ok", "ok"]
    full, incremental = points
    assert [disk.parent for disk in full.disks + incremental.disks] == ["", "", full.id, full.id]
    for point in points:
        for disk in point.disks:
            top, *below = of_version_1.chain(point, disk.target)
            require_own_backing((top, *below))
            flat = of_version_1.path / "flat"
            subprocess.run(["qemu-img", "convert", "-O", "raw", top, flat], check=True)
            digest = hashlib.sha256(flat.read_bytes()).hexdigest()[:8]
            assert digest == CONTENT_OF_VERSION_1[point.id[:15], disk.target]


def test_a_manifest_of_version_1_that_lost_a_part_is_told(
    of_version_1: DirectoryRepository,
) -> None:
    (uuid,) = of_version_1.domains()
    first = of_version_1.points(uuid)[0]
    path = of_version_1.directory(uuid, first.id) / manifest.FILE
    data = json.loads(path.read_text())
    del data["disks"]
    path.write_text(json.dumps(data))
    _, troubles = of_version_1.scan(uuid)
    assert "disks: Missing data" in troubles[first.id]
    assert {status.state for status in of_version_1.statuses(uuid)} == {"broken"}


def test_an_image_names_its_backing_file_relatively_and_with_its_format(tmp_path: Path) -> None:
    # The parent need not be there: nothing is probed.
    create_image(tmp_path / "a.qcow2", SIZE + 512, backing="../parent/a.qcow2")
    done = subprocess.run(
        ["qemu-img", "info", "--output=json", tmp_path / "a.qcow2"],
        capture_output=True,
        check=True,
    )
    info = json.loads(done.stdout)
    assert info["virtual-size"] == SIZE + 512
    assert info["backing-filename"] == "../parent/a.qcow2"
    assert info["backing-filename-format"] == "qcow2"


def test_an_image_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(RepositoryUnusable, match="Cannot make the image") as caught:
        create_image(tmp_path / "missing" / "a.qcow2", SIZE)
    assert caught.value.mend
