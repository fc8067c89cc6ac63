"""Repositories with chains of real images and manifests, made without a domain."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import uuid as uuids
from pathlib import Path

from virtvault.models import Point, PointDisk
from virtvault.settings import RepositorySettings, Settings
from workers import digests
from workers.engine import Engine
from workers.repository import DirectoryRepository, open_repository
from workers.repository.directory import create_image

MIB = 2**20
# No whole number of granules, so that the last one is cut.
SIZE = 6 * MIB + 5 * 512


class Stored:
    """One domain's points in a repository of its own, with what each must read as."""

    def __init__(
        self,
        directory: Path,
        seed: int = 1,
        targets: tuple[str, ...] = ("vda",),
        size: int = SIZE,
    ) -> None:
        self.random = random.Random(seed)
        self.size = size
        self.targets = targets
        self.uuid = str(uuids.uuid5(uuids.NAMESPACE_OID, str(seed)))
        (directory / "repo").mkdir(parents=True)
        self.settings = Settings(
            host="lab",
            state_dir=str(directory / "state"),
            runtime_dir=f"/run/{directory.parent.name}",
            repositories={"main": RepositorySettings("main", str(directory / "repo"))},
            poll_min=0.05,
            poll_max=0.2,
        )
        self.engine = Engine.of(self.settings)
        self.repository: DirectoryRepository = open_repository(self.settings, "main")
        self.content: dict[tuple[str, str], str] = {}
        self._count = 0

    def close(self) -> None:
        """Remove what the directory that was given does not hold."""
        shutil.rmtree(self.settings.runtime_dir, ignore_errors=True)

    def take(self, parent: str = "", content: str = "", **parents: str) -> str:
        """Store a point that stands on ``parent`` (empty: a full), or on one for each disk.

        ``content`` is a command of qemu-io's in place of writes by chance.
        """
        self._count += 1
        minute, second = divmod(self._count, 60)
        id_ = f"20260101T{minute // 60:02}{minute % 60:02}{second:02}Z-{self._count:08x}"
        partial = self.repository.begin(self.uuid, id_, "<domain/>")
        disks = []
        for target in self.targets:
            below = parents.get(target, parent)
            image = partial / f"{target}.qcow2"
            backing = f"../{below}/{target}.qcow2" if below else ""
            create_image(image, self.size, backing=backing)
            self._write(image, content)
            made = digests.compute([image], self.settings.runtime_dir, whole=not below)
            entry = image.stat()
            disks.append(
                PointDisk(
                    target=target,
                    file=image.name,
                    sync="incremental" if below else "full",
                    parent=below,
                    reason="",
                    virtual_size=self.size,
                    transferred=0,
                    stored=entry.st_blocks * 512,
                    length=entry.st_size,
                    source="/src.qcow2",
                    source_format="qcow2",
                    bitmap=f"virtvault.{self.repository.id}.{id_}.{target}",
                    persistent=True,
                    digests=digests.store(partial, target, made),
                )
            )
        instant = f"2026-01-01T{minute // 60:02}:{minute % 60:02}:{second:02}.000Z"
        self.repository.commit(
            Point(
                id=id_,
                repository="main",
                repository_id=self.repository.id,
                task_id=f"task-{id_}",
                domain="vm",
                uuid=self.uuid,
                host="lab",
                instant=instant,
                started=instant,
                finished=instant,
                consistency="crash-consistent",
                paused_ms=0.0,
                frozen_ms=0.0,
                isolated=True,
                disks=tuple(disks),
            )
        )
        for target in self.targets:
            self.content[id_, target] = self.read(id_, target)
        return id_

    def chain(self, length: int) -> list[str]:
        """A full and the increments on it."""
        ids: list[str] = []
        for _ in range(length):
            ids.append(self.take(ids[-1] if ids else ""))
        return ids

    def ids(self) -> list[str]:
        return [point.id for point in self.repository.points(self.uuid)]

    def image(self, id_: str, target: str = "vda") -> Path:
        return self.repository.directory(self.uuid, id_) / f"{target}.qcow2"

    def read(self, id_: str, target: str) -> str:
        """A digest of what stock tools read of a point's disk, by the images' own headers."""
        flat = Path(self.settings.state_dir).parent / "flat.raw"
        image = self.image(id_, target)
        command = ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", image, flat]
        subprocess.run(command, check=True)
        return hashlib.sha256(flat.read_bytes()).hexdigest()

    def assert_equal(self, ids: list[str]) -> None:
        """Each of the points reads as it did when it was stored, and its chain is accepted."""
        for id_ in ids:
            point = self.repository.find(id_)
            for target in self.targets:
                assert self.read(id_, target) == self.content[id_, target], (id_, target)
                assert self.repository.chain(point, target)[0] == self.image(id_, target)

    def assert_whole(self) -> None:
        """Every image is what its list of digests says, and sound; no point needs another."""
        for point in self.repository.points(self.uuid):
            directory = self.repository.directory(self.uuid, point.id)
            lists = {p.name for p in directory.glob("*.digests")}
            assert lists == {digests.file_name(d.target, d.digests) for d in point.disks}
            for disk in point.disks:
                assert digests.check(directory, disk, self.settings.runtime_dir) is None
                # 3: clusters leaked by a kill, which does no harm.
                code = subprocess.run(
                    ["qemu-img", "check", "-q", "-f", "qcow2", directory / disk.file],
                    check=False,
                    capture_output=True,
                ).returncode
                assert code in (0, 3)
        assert {s.state for s in self.repository.statuses(self.uuid)} == {"ok"}

    def _write(self, image: Path, content: str) -> None:
        commands = ["-c", content] if content else []
        for _ in range(0 if content else self.random.randint(2, 7)):
            granules = self.size // 65536 + 1
            first = self.random.randrange(granules)
            start = first * 65536
            length = min(self.random.randint(1, 12) * 65536, self.size - start)
            if self.random.random() < 0.2:  # as a guest's own small write in a granule
                length = min(512, self.size - start)
            what = f"-P {self.random.randint(1, 250)}" if self.random.random() < 0.7 else "-z"
            commands += ["-c", f"write -q {what} {start} {length}"]
        subprocess.run(["qemu-io", "-f", "qcow2", *commands, image], check=True)
