"""A repository in a directory: one directory a point, plain qcow2 images, a manifest.

``<repository>/<domain uuid>/<point id>/manifest.json domain.xml vda.qcow2 …``. A point is written
in ``<point id>.partial`` and published by fsync and one rename. Images name their backing file
relatively and with its format, so stock tools open any point and the repository can be moved.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
from pathlib import Path

from virtvault.errors import RepositoryUnusable, UnknownPoint, VirtvaultError
from virtvault.models import Point, PointDisk
from virtvault.settings import RepositorySettings
from workers.journal import durable_write, sync_directory
from workers.plan import ParentDisk
from workers.repository import manifest

__all__ = ["DirectoryRepository", "create_image"]

IDENTITY = "repository.json"
PARTIAL = ".partial"
POINT_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")


class DirectoryRepository:
    """An opened repository. ``id`` (8 hex digits) is its own, whatever its name or mount."""

    def __init__(self, settings: RepositorySettings, state_dir: str) -> None:
        self.name = settings.name
        self.path = Path(settings.path)
        self._seen = Path(state_dir, "repositories", settings.name)
        self.id = self._identity()

    # -- reading ------------------------------------------------------------------------------

    def points(self, uuid: str) -> list[Point]:
        """The domain's points that can be read, oldest first by id."""
        found = []
        for directory in sorted(self._domain(uuid).glob("*-*")):
            if directory.suffix != PARTIAL and directory.is_dir():
                # A damaged manifest takes its own point out, and so every chain through it.
                with contextlib.suppress(RepositoryUnusable):
                    found.append(manifest.read(directory))
        return found

    def find(self, point: str) -> Point:
        """A point by id.

        :raises UnknownPoint: this repository has none of that id.
        :raises RepositoryUnusable: its manifest cannot be read.
        """
        if POINT_ID.fullmatch(point):
            for domain in self.path.iterdir():
                if (domain / point).is_dir():
                    return manifest.read(domain / point)
        raise UnknownPoint(
            f"Repository {self.name} has no point {point}.", "`virtvault points` lists them."
        )

    def of_task(self, uuid: str, point: str, task_id: str) -> Point | None:
        """The point a task has already committed, None where it has not."""
        directory = self._domain(uuid) / point
        if not directory.exists():
            return None
        found = manifest.read(directory)
        return found if found.task_id == task_id else None

    def parents(self, uuid: str, target: str) -> dict[str, ParentDisk]:
        """What an incremental of this disk could build on, by point id."""
        points = {p.id: p for p in self.points(uuid)}
        disks = {p.id: disk for p in points.values() for disk in p.disks if disk.target == target}
        return {
            id_: ParentDisk(disk, self._trouble(uuid, id_, disks)) for id_, disk in disks.items()
        }

    def chain(self, point: Point, target: str) -> list[Path]:
        """The images of one disk from the point's own down to its full.

        :raises RepositoryUnusable: a link is missing or is not what its manifest says.
        """
        disks = {
            p.id: disk for p in self.points(point.uuid) for disk in p.disks if disk.target == target
        }
        if trouble := self._trouble(point.uuid, point.id, disks):
            raise RepositoryUnusable(
                f"Disk {target} of point {point.id}: the point {trouble}.",
                "Restore the missing files, or use a point of another chain.",
            )
        found, step = [], point.id
        while step:
            found.append(self.directory(point.uuid, step) / disks[step].file)
            step = disks[step].parent
        return found

    def directory(self, uuid: str, point: str) -> Path:
        """Where a committed point lies."""
        return self._domain(uuid) / point

    def partial(self, uuid: str, point: str) -> Path:
        """Where a point is being written."""
        return self._domain(uuid) / f"{point}{PARTIAL}"

    def free(self) -> int:
        """Bytes left to this process."""
        stat = os.statvfs(self.path)
        return stat.f_bavail * stat.f_frsize

    # -- writing ------------------------------------------------------------------------------

    def begin(self, uuid: str, point: str, xml: str) -> Path:
        """Make the partial directory of a new point, empty but for the domain's XML.

        :raises RepositoryUnusable: it cannot be written.
        """
        partial = self.partial(uuid, point)
        try:
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(parents=True, mode=0o700)
            durable_write(partial / "domain.xml", xml)
            sync_directory(self.path)
            sync_directory(partial.parent)
        except OSError as error:
            raise self._unusable(f"{partial}: {error.strerror}") from error
        return partial

    def commit(self, point: Point) -> Path:
        """Publish a point whose images are complete: fsync all, then one rename.

        :raises RepositoryUnusable: something did not reach the disk; nothing was published.
        """
        partial = self.partial(point.uuid, point.id)
        final = self.directory(point.uuid, point.id)
        try:
            for disk in point.disks:
                descriptor = os.open(partial / disk.file, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            durable_write(partial / manifest.FILE, manifest.text(point))
            partial.rename(final)
            try:
                sync_directory(final.parent)
            except OSError:
                # Not known to be durable, so not published.
                final.rename(partial)
                raise
        except OSError as error:
            raise self._unusable(f"{partial}: {error.strerror}") from error
        return final

    # -- inside -------------------------------------------------------------------------------

    def _domain(self, uuid: str) -> Path:
        return self.path / uuid

    def _trouble(self, uuid: str, point: str, disks: dict[str, PointDisk]) -> str:
        """Why nothing may build on a point's disk: a link of its chain is not as it should be."""
        step, seen = point, set[str]()
        while step:
            if step in seen:
                return f"needs point {step}, which needs itself"
            seen.add(step)
            disk = disks.get(step)
            if disk is None:
                return f"needs point {step}, which is not there or damaged"
            image = self.directory(uuid, step) / disk.file
            try:
                length = image.stat().st_size
            except OSError:
                return f"needs {image}, which is not there"
            if length != disk.length:
                return f"needs {image}, which is {length} bytes long and not {disk.length}"
            step = disk.parent
        return ""

    def _identity(self) -> str:
        """Read the repository's id, giving it one at first use."""
        if not self.path.is_dir():
            raise self._unusable(f"{self.path} is not a directory")
        path = self.path / IDENTITY
        try:
            seen = self._seen.read_text().strip() if self._seen.exists() else ""
            if seen and not path.exists():
                raise self._unusable(
                    f"{path}, there before, is gone: {self.path} is not mounted or was emptied "
                    f"(if on purpose, remove {self._seen})"
                )
            if not path.exists():
                fresh = {"schema_version": 1, "id": secrets.token_hex(4)}
                temporary = self.path / f".{IDENTITY}.{fresh['id']}"
                durable_write(temporary, json.dumps(fresh))
                # link, not rename: of two first users one wins and both read the winner's.
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, path)
                temporary.unlink()
                sync_directory(self.path)
            read = json.loads(path.read_text())
            if read["schema_version"] != 1:
                raise self._unusable(f"{path} is of a newer version")
            identity: str = read["id"]
            if seen and seen != identity:
                raise self._unusable(
                    f"{self.path} holds repository {identity} and not {seen} as before "
                    f"(if on purpose, remove {self._seen})"
                )
            if not seen:
                self._seen.parent.mkdir(parents=True, exist_ok=True)
                durable_write(self._seen, identity)
        except OSError as error:
            raise self._unusable(f"{self.path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise self._unusable(f"{path} is damaged: {error}") from error
        return identity

    def _unusable(self, what: str) -> VirtvaultError:
        return RepositoryUnusable(
            f"Repository {self.name} cannot be used: {what}.",
            "Mount it, make room or mend its permissions; `virtvault check` tests it.",
        )


def create_image(
    path: Path,
    size: int,
    *,
    backing: str = "",
    backing_format: str = "qcow2",
    format: str = "qcow2",
    compression: str = "none",
) -> None:
    """Make an empty image; ``backing`` is stored as it is given, with its format named.

    :raises RepositoryUnusable: qemu-img could not.
    """
    options = ["-o", "compression_type=zstd"] if compression == "zstd" else []
    # -u: the size is given, the backing file need not be opened (and is never probed).
    base = ["-u", "-b", backing, "-F", backing_format] if backing else []
    done = subprocess.run(
        ["qemu-img", "create", "-q", "-f", format, *options, *base, str(path), str(size)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RepositoryUnusable(
            f"Cannot make the image {path}: {done.stderr.strip()}.",
            "Make room there or mend its permissions; `virtvault check` tests it.",
        )
