"""A repository in a directory: one directory a point, plain qcow2 images, a manifest.

``<repository>/<domain uuid>/<point id>/manifest.json domain.xml vda.qcow2 …``. A point is written
in ``<point id>.partial`` and published by fsync and one rename. Images name their backing file
relatively and with its format, so stock tools open any point and the repository can be moved.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from virtvault.errors import (
    PointBad,
    PointBusy,
    RepositoryUnusable,
    UnknownPoint,
    VirtvaultError,
)
from virtvault.models import Point, PointDisk, PointStatus
from virtvault.settings import RepositorySettings
from workers.journal import durable_write, sync_directory
from workers.plan import ParentDisk
from workers.repository import manifest, sidecar
from workers.repository.regular import is_directory

__all__ = ["DirectoryRepository", "create_image"]

IDENTITY = "repository.json"
PARTIAL = ".partial"
# A pruned point on its way out.
REMOVED = ".removed"
LOCKS = ".locks"
# Times a chain is looked at before it counts as damaged.
TRIES = 2
# Images in a chain. Each is found through the header of the one above, by a path that grows with
# every link: at about 138 it is longer than Linux takes.
LONGEST = 100
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# The trouble seen with a disk's image, or its verdict, by (which, point, target).
Looks = dict[tuple[str, str, str], str]
POINT_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")


class DirectoryRepository:
    """An opened repository. ``id`` (8 hex digits) is its own, whatever its name or mount."""

    def __init__(self, settings: RepositorySettings, state_dir: str) -> None:
        self.name = settings.name
        self.path = Path(settings.path)
        self._seen = Path(state_dir, "repositories", settings.name)
        self.id = self._identity()

    # -- reading ------------------------------------------------------------------------------

    def domains(self) -> list[str]:
        """The uuids of the domains that have points here."""
        return sorted(
            d.name for d in self.path.iterdir() if UUID.fullmatch(d.name) and is_directory(d)
        )

    def points(self, uuid: str) -> list[Point]:
        """The domain's points that can be read, oldest first by id."""
        return self.scan(uuid)[0]

    def scan(self, uuid: str) -> tuple[list[Point], dict[str, str]]:
        """The domain's points, oldest first by id; and why those that cannot be read cannot.

        A damaged manifest takes its own point out, and so every chain through it.
        """
        found, troubles = [], {}
        for directory in sorted(self._domain(uuid).glob("*-*")):
            if not POINT_ID.fullmatch(directory.name) or not is_directory(directory):
                continue
            try:
                found.append(manifest.read(directory))
            except RepositoryUnusable as error:
                troubles[directory.name] = error.message
        return found, troubles

    def find(self, point: str) -> Point:
        """A point by id.

        :raises UnknownPoint: this repository has none of that id, or it is not complete.
        :raises RepositoryUnusable: its manifest cannot be read.
        """
        if POINT_ID.fullmatch(point):
            for domain in map(self._domain, self.domains()):
                if is_directory(domain / point):
                    return manifest.read(domain / point)
                if (domain / f"{point}{PARTIAL}").is_dir():
                    raise UnknownPoint(
                        f"Point {point} is not complete: its backup runs, or has failed.",
                        "`virtvault jobs` shows what runs, `virtvault points` what is complete.",
                    )
                if (domain / f"{point}{REMOVED}").is_dir():
                    raise UnknownPoint(
                        f"Point {point} was pruned.", "`virtvault points` lists what is kept."
                    )
        raise UnknownPoint(
            f"Repository {self.name} has no point {point}.", "`virtvault points` lists them."
        )

    def statuses(self, uuid: str) -> list[PointStatus]:
        """How each of the domain's points is now, the unreadable ones too."""
        found = self._statuses(uuid)
        if any(status.state == "broken" for status in found):
            # A merge or a prune that ended while we looked looks like damage.
            found = self._statuses(uuid)
        return found

    def _statuses(self, uuid: str) -> list[PointStatus]:
        points, troubles = self.scan(uuid)
        disks = {
            target: {p.id: d for p in points for d in p.disks if d.target == target}
            for target in {d.target for p in points for d in p.disks}
        }
        looks: Looks = {}
        found = [
            self._status(
                uuid,
                point.id,
                [self._trouble(uuid, point.id, disks[d.target], looks) for d in point.disks],
            )
            for point in points
        ]
        found += [
            self._status(uuid, id_, [f"cannot be read: {why}"]) for id_, why in troubles.items()
        ]
        return sorted(found, key=lambda status: status.point)

    def _status(self, uuid: str, point: str, troubles: list[str]) -> PointStatus:
        directory = self.directory(uuid, point)
        why = next((trouble for trouble in troubles if trouble), "")
        verdict, verified, state = "", "", "broken" if why else "ok"
        with contextlib.suppress(RepositoryUnusable):
            last = sidecar.verdict(directory)
            if last is not None:
                verdict, verified = last.verdict, last.at
                if last.verdict == "bad":
                    state, why = "bad", last.detail
        if (directory / sidecar.PRUNING).exists():
            state, why = "pruning", "it is being pruned"
        return PointStatus(
            point=point,
            repository=self.name,
            repository_id=self.id,
            uuid=uuid,
            state=state,
            why=why,
            verdict=verdict,
            verified=verified,
            protected=sidecar.protection(directory),
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
        for _ in range(TRIES):
            points = {point.id: point for point in self.points(uuid)}
            disks = {p.id: d for p in points.values() for d in p.disks if d.target == target}
            looks: Looks = {}
            found = {
                id_: ParentDisk(
                    disk,
                    self._trouble(uuid, id_, disks, looks) or _too_long(id_, disks),
                    points[id_].merged,
                )
                for id_, disk in disks.items()
            }
            if not any(parent.trouble for parent in found.values()):
                break
        return found

    def _disks(self, uuid: str, target: str) -> dict[str, PointDisk]:
        return {p.id: d for p in self.points(uuid) for d in p.disks if d.target == target}

    def chain(self, point: Point, target: str, *, force: bool = False) -> list[Path]:
        """The images of one disk from the point's own down to its full.

        :param force: whether one that a verify found bad will do.
        :raises PointBad: a verify found one of them bad.
        :raises PointBusy: the point is being pruned.
        :raises RepositoryUnusable: a link is missing or is not what its manifest says.
        """
        if (self.directory(point.uuid, point.id) / sidecar.PRUNING).exists():
            raise PointBusy(
                f"Point {point.id} is being pruned.", "Use another: `virtvault points` lists them."
            )
        for _ in range(TRIES):
            disks = self._disks(point.uuid, target)
            # A merge that ended while we looked looks like damage.
            if not (trouble := self._damage(point.uuid, point.id, disks)):
                break
        if trouble:
            raise RepositoryUnusable(
                f"Disk {target} of point {point.id}: the point {trouble}.",
                "Restore the missing files, or use a point of another chain.",
            )
        if not force and (bad := self._verified_bad(point.uuid, point.id, disks)):
            raise PointBad(
                f"Disk {target} of point {point.id}: the point {bad}.",
                "Use a point of another chain. --force takes it as it is: what is read from the "
                "damaged part is not what was backed up.",
            )
        return [
            self.directory(point.uuid, step) / disks[step].file for step in _steps(point.id, disks)
        ]

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

    # -- one at a time ------------------------------------------------------------------------

    @contextmanager
    def alone(self, uuid: str, task_id: str, seconds: float = 60.0) -> Iterator[None]:
        """Hold a domain's points for the moment in which something is decided about them.

        A lock of the file system's, which ends with the process that holds it or, on a network
        file system, with its host's lease: never stale.

        :raises PointBusy: somebody else has held it all the time.
        """
        with self._locked(uuid, "alone", task_id, seconds):
            yield

    @contextmanager
    def pruning(self, uuid: str, task_id: str) -> Iterator[None]:
        """Hold a domain's chains as the one that merges and removes. As :meth:`alone`.

        :raises PointBusy: somebody else does so.
        """
        with self._locked(uuid, "prune", task_id, 0.0):
            yield

    @contextmanager
    def _locked(self, uuid: str, name: str, task_id: str, seconds: float) -> Iterator[None]:
        locks = self.path / LOCKS
        try:
            locks.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(
                locks / f"{uuid}.{name}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise self._unusable(f"{error.filename}: {error.strerror}") from error
        until = time.monotonic() + seconds
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        holder = os.pread(descriptor, 200, 0).decode() or "unknown"
                        raise PointBusy(
                            f"The points of domain {uuid} in repository {self.name} are held by "
                            f"task {holder}.",
                            "Wait for it, or stop it with `virtvault cancel`.",
                        ) from None
                    time.sleep(0.02)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, task_id.encode(), 0)
            yield
        finally:
            os.close(descriptor)

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

    def _trouble(
        self, uuid: str, point: str, disks: dict[str, PointDisk], looks: Looks | None = None
    ) -> str:
        """Why nothing may build on a point's disk."""
        if (self.directory(uuid, point) / sidecar.PRUNING).exists():
            return "is being pruned"
        return self._damage(uuid, point, disks, looks) or self._verified_bad(
            uuid, point, disks, looks
        )

    def _damage(
        self, uuid: str, point: str, disks: dict[str, PointDisk], looks: Looks | None = None
    ) -> str:
        """How a link of its chain is not as it should be.

        :param looks: what was seen of single images; whoever asks for many points of a chain
            gives one for all, or it would be looked at once more for each link.
        """
        looks = {} if looks is None else looks
        seen = set[str]()
        for step in _steps(point, disks):
            if step in seen:
                return f"needs point {step}, which needs itself"
            seen.add(step)
            disk = disks.get(step)
            if disk is None:
                return f"needs point {step}, which is not there or damaged"
            key = ("image", step, disk.target)
            if key not in looks:
                looks[key] = self._image_damage(uuid, step, disk)
            if looks[key]:
                return f"needs {looks[key]}"
        return ""

    def _image_damage(self, uuid: str, point: str, disk: PointDisk) -> str:
        directory = self.directory(uuid, point)
        image = directory / disk.file
        try:
            length = image.stat().st_size
        except OSError:
            return f"{image}, which is not there"
        expected = f"../{disk.parent}/{disk.file}" if disk.parent else ""
        if disk.backing:
            expected = disk.backing[0].path
        try:
            named = manifest.backing_of(image)
        except RepositoryUnusable as error:
            return error.message.rstrip(".")
        if named != expected:
            # Nothing but the chain's own images is ever opened.
            return f"{image}, which points to {named or 'nothing'}, its manifest to {expected}"
        # One that is being pruned may be the base of a merge: it grows, and what kept points
        # read from it stays the same.
        if length != disk.length and not (directory / sidecar.PRUNING).exists():
            return f"{image}, which is {length} bytes long and not {disk.length}"
        return ""

    def _verified_bad(
        self, uuid: str, point: str, disks: dict[str, PointDisk], looks: Looks | None = None
    ) -> str:
        """What a verify has found of a link of its chain; ``looks`` as in :meth:`_damage`."""
        looks = {} if looks is None else looks
        target = disks[point].target
        for step in _steps(point, disks):
            key = ("verdict", step, target)
            if key not in looks:
                looks[key] = self._verdict_of(uuid, step, target)
            if looks[key]:
                return f"{'was' if step == point else f'needs point {step},'} {looks[key]}"
        return ""

    def _verdict_of(self, uuid: str, point: str, target: str) -> str:
        try:
            last = sidecar.verdict(self.directory(uuid, point))
        except RepositoryUnusable as error:
            return f"left by a verify with a verdict that cannot be read: {error.message}"
        if last is None or not any(d.target == target and d.verdict == "bad" for d in last.disks):
            return ""
        return f"found bad by a verify on {last.at}: {last.detail.rstrip('.')}"

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


def _too_long(point: str, disks: Mapping[str, PointDisk]) -> str:
    """Why no more may be put on a chain, or empty: its length."""
    length = sum(1 for _ in _steps(point, disks))
    if length < LONGEST:
        return ""
    return f"has a chain of {length} images, and tools cannot open much longer ones"


def _steps(point: str, disks: Mapping[str, PointDisk]) -> Iterator[str]:
    """The points that hold a disk's chain, from ``point`` down; a loop ends at its second round."""
    seen = set[str]()
    while point:
        yield point
        if point not in disks or point in seen:
            return
        seen.add(point)
        point = disks[point].parent


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
