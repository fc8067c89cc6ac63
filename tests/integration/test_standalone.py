"""Everything a restore needs is in the repository, wherever that is and whoever reads it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import MIB, Points, with_settings
from tests.integration.scenes import Boot, TakePoints, give_new_content, qemu_img, syncs
from tests.integration.test_restore import event_loop
from tests.lab import DiskSpec, assert_same
from virtvault.errors import RepositoryUnusable
from virtvault.models import RestoreRequest
from virtvault.settings import RepositorySettings
from workers.engine import Engine, Ties
from workers.repository import open_repository
from workers.restore import restore

ROOT = Path(__file__).parents[2]
DISKS = (DiskSpec("vda", "qcow2", 32 * MIB), DiskSpec("vdb", "raw", 8 * MIB + 512))


@pytest.fixture
def chain(boot: Boot, points: TakePoints) -> Iterator[Points]:
    """A full and two incrementals, of a qcow2 and an odd-sized raw disk."""
    made = points(boot(*DISKS))
    for value in (1, 2, 3):
        give_new_content_to(made, value)
        made.take()
    with event_loop():
        yield made


def give_new_content_to(made: Points, value: int) -> None:
    give_new_content(made.guest, value, ["vda"])
    made.guest.qemu_io("vda", f"write -z {3 * value}M 1M")
    made.guest.qemu_io("vdb", f"write -P {value} {value}M 1M")


def prove_restored(engine: Engine, made: Points, directory: Path) -> None:
    """Every point taken is restored by this engine, equal to its references."""
    for number, (result, references) in enumerate(made.taken):
        request = RestoreRequest(point=result.point, to=str(directory / f"restored-{number}"))
        done = restore(engine, request, Ties(f"restore-{number}-{directory.name}"))
        for disk in done.disks:
            format_ = made.guest.disks[disk.target].format
            assert_same(Path(disk.path), "qcow2", references[disk.target], format_)


def test_a_repository_goes_on_at_another_path_and_on_another_hypervisor(
    chain: Points, engine: Engine, workdir: Path
) -> None:
    before = open_repository(engine.settings, "main").id
    moved = workdir / "mnt" / "elsewhere"
    moved.parent.mkdir()
    (workdir / "repo").rename(moved)
    (workdir / "repo").mkdir()

    # The old path is an empty directory now, as that of a mount that is away.
    with pytest.raises(RepositoryUnusable, match=r"not mounted or was emptied.*remove /"):
        open_repository(engine.settings, "main")
    assert list((workdir / "repo").iterdir()) == []

    here = with_settings(engine, repositories={"main": RepositorySettings("main", str(moved))})
    assert open_repository(here.settings, "main").id == before
    chain.engine = here
    give_new_content_to(chain, 4)
    assert syncs(chain.take()) == {"vda": "incremental", "vdb": "incremental"}

    # Another hypervisor has another state directory and another name for it, and the domain now.
    there = with_settings(
        engine,
        host="lab2",
        state_dir=str(workdir / "state2"),
        repositories={"nfs": RepositorySettings("nfs", str(moved))},
    )
    chain.engine = there
    give_new_content_to(chain, 5)
    assert syncs(chain.take()) == {"vda": "incremental", "vdb": "incremental"}
    (workdir / "out").mkdir()
    prove_restored(there, chain, workdir / "out")


def test_a_missing_link_breaks_what_stands_on_it_and_the_next_backup_is_a_full(
    chain: Points, engine: Engine, workdir: Path
) -> None:
    (first, _), (second, _), (third, _) = chain.taken
    repository = open_repository(engine.settings, "main")
    away = repository.directory(second.uuid, second.point)
    away.rename(workdir / "away")
    states = {status.point: status for status in repository.statuses(first.uuid)}
    assert {id_: status.state for id_, status in states.items()} == {
        first.point: "ok",
        third.point: "broken",
    }
    assert f"needs point {second.point}, which is not there" in states[third.point].why
    with pytest.raises(RepositoryUnusable, match=f"needs point {second.point}"):
        restore(
            engine, RestoreRequest(point=third.point, to=str(workdir / "out")), Ties("restore-3")
        )
    assert not (workdir / "out").exists()
    fourth = chain.take()
    assert set(syncs(fourth).values()) == {"full"}
    assert all(second.point in disk.reason for disk in fourth.disks)

    # Put back, it is as it was.
    (workdir / "away").rename(away)
    assert {status.state for status in repository.statuses(first.uuid)} == {"ok"}
    chain.prove_all()


def commands(document: str) -> str:
    (found,) = re.findall(r"^```sh\n(.*?)^```$", (ROOT / document).read_text(), re.M | re.S)
    return str(found)


def test_the_commands_of_the_documents_restore_without_virtvault(
    chain: Points, workdir: Path
) -> None:
    """On a copy at another place, with nothing of virtvault but what the repository holds."""
    copied = workdir / "a place with spaces"
    shutil.copytree(workdir / "repo", copied)
    shutil.rmtree(workdir / "repo")
    # A backup under way and a point on its way out are no points.
    (domain,) = copied.glob("*-*-*-*-*")
    newest = chain.taken[-1][0].point
    shutil.copytree(domain / newest, domain / "20990101T000000Z-ffffffff.partial")
    shutil.copytree(domain / newest, domain / "20990102T000000Z-ffffffff.removed")
    for result, references in chain.taken:
        point = f"{result.uuid}/{result.point}"
        to = workdir / f"by the README {result.point}"
        run("README.md", repository=copied, to=to, point=copied / point)
        prove_images(chain, to, references)
        to = workdir / f"by docs {result.point}"
        # Left to itself it takes the newest.
        chosen = {} if result.point == newest else {"point": point}
        run("docs/repository.md", repository=copied, to=to, listing=workdir / "listing", **chosen)
        prove_images(chain, to, references)
    lines = [line.split("  ") for line in (workdir / "listing").read_text().splitlines()]
    assert lines == [
        [result.instant, chain.guest.name, f"{result.uuid}/{result.point}"]
        for result, _ in chain.taken
    ]
    (domain / newest / "pruning.json").touch()
    for document in ("README.md", "docs/repository.md"):
        with pytest.raises(subprocess.CalledProcessError):
            run(document, repository=copied, to=workdir / "x", point=domain / newest)
    assert not (workdir / "x").exists()


def run(document: str, **environment: Path | str) -> None:
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands(document)],
        env={"PATH": os.defpath, **{key: str(value) for key, value in environment.items()}},
        cwd="/",
        check=True,
        capture_output=True,
    )


def prove_images(chain: Points, directory: Path, references: dict[str, Path]) -> None:
    for target, reference in references.items():
        image = directory / f"{target}.qcow2"
        assert "backing file" not in qemu_img("info", image)
        assert_same(image, "qcow2", reference, chain.guest.disks[target].format)
    assert "<domain" in (directory / "domain.xml").read_text()


def test_a_repository_of_version_1_is_restored(engine: Engine, workdir: Path) -> None:
    archive = ROOT / "tests" / "unit" / "repository_v1.tar.gz"
    subprocess.run(["tar", "-xzf", archive, "-C", workdir], check=True)
    repository = open_repository(engine.settings, "main")
    (uuid,) = repository.domains()
    with event_loop():
        for point in repository.points(uuid):
            request = RestoreRequest(point=point.id, to=str(workdir / point.id))
            for disk in restore(engine, request, Ties(f"restore-{point.id}")).disks:
                chain = repository.chain(point, disk.target)
                assert_same(Path(disk.path), "qcow2", chain[0], "qcow2")
