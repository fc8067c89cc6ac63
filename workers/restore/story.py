"""What all restores have in common: the run and its journal, its daemon, its result."""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from pathlib import Path

from virtvault import schemas
from virtvault.errors import DomainStopped, InvalidRequest
from virtvault.models import (
    DiskProgress,
    Point,
    PointDisk,
    RestoredDisk,
    RestoreRequest,
    RestoreResult,
)
from workers import reading, storage_daemon
from workers.engine import Engine, Ties, now, tag_of
from workers.jobs import Detached
from workers.journal import Run
from workers.reading import Source
from workers.repository import DirectoryRepository
from workers.storage_daemon import StorageDaemonMonitor

__all__ = ["Story", "key_of", "make_directory", "remove_directories", "stored", "take_directories"]


def key_of(kind: str, what: object) -> str:
    """The name of the lock on a destination."""
    return f"restore-{kind}-{hashlib.sha256(str(what).encode()).hexdigest()[:16]}"


class Story(ABC):
    """One restore, from its request or from where the journal says it is."""

    def __init__(
        self,
        engine: Engine,
        request: RestoreRequest,
        ties: Ties,
        repository: DirectoryRepository,
        point: Point,
    ) -> None:
        self.engine = engine
        self.settings = engine.settings
        self.request = request
        self.ties = ties
        self.repository = repository
        self.point = point
        self.tag = tag_of(ties.task_id)
        self.daemon = storage_daemon.daemon_of(self.settings.runtime_dir, "restore", self.tag)
        self.disks: list[PointDisk] = reading.choose(point, request.disks)
        self.run = engine.journal.read(ties.task_id) or Run(
            task_id=ties.task_id,
            kind="restore",
            request=schemas.dump(request),
            domain=point.domain,
            uuid=point.uuid,
            repository=repository.name,
            point=point.id,
            started=now(),
            way="in place" if request.in_place else request.mode,
            targets=[disk.target for disk in self.disks],
        )
        self.run.draft.setdefault("notes", [])

    # -- what each way has of its own -----------------------------------------------------------

    @abstractmethod
    def locks(self) -> list[str]:
        """The locks that keep other tasks away from its destination."""

    @abstractmethod
    def what(self) -> str:
        """Its destination, for a message."""

    @abstractmethod
    def work(self) -> None:
        """Do what is not done yet."""

    @abstractmethod
    def undo(self) -> None:
        """Leave things as they were before, as far as :meth:`work` had not come to its end."""

    @abstractmethod
    def restored(self) -> list[RestoredDisk]:
        """The disks, now that all is done."""

    # -- the story ----------------------------------------------------------------------------

    def carry_on(self) -> RestoreResult:
        """Go on from wherever the journal says this run is."""
        try:
            self.work()
            result = self._result()
            self.engine.journal.finish(self.run.task_id, schemas.dump(result))
            return result
        except Detached:
            raise
        except BaseException as error:
            if self.keeps(error):
                raise
            self.undo()
            self.engine.journal.forget(self.run.task_id)
            raise

    def keeps(self, error: BaseException) -> bool:
        """Whether after that error the run stays as it is, for the next worker to go on with."""
        return False

    def phase(self, phase: str) -> None:
        """Make durable how far it is."""
        self.run.phase = phase
        self.engine.journal.write(self.run)

    def note(self, text: str) -> None:
        """Have the result say something."""
        if text not in self.run.draft["notes"]:
            self.run.draft["notes"].append(text)

    # -- shared steps -------------------------------------------------------------------------

    def require_point(self) -> None:
        """See that the chosen disks can be read, before anything is made.

        :raises PointBad: a verify found one bad.
        :raises RepositoryUnusable: a chain is broken.
        """
        for disk in self.disks:
            self.chain(disk)
        if self.request.force:
            self._note_what_was_forced()

    def chain(self, disk: PointDisk) -> list[Path]:
        """The images of a disk, its own first."""
        return self.repository.chain(self.point, disk.target, force=self.request.force)

    def needed(self, disk: PointDisk) -> int:
        """The bytes that a flat image of a disk takes at most."""
        # Data that a later image overwrites is counted twice: an upper bound, capped by the size.
        images = [*self.chain(disk), *(Path(image.path) for image in disk.backing)]
        stored = sum(image.stat().st_blocks * 512 for image in images if image.exists())
        return min(disk.virtual_size, stored)

    def open_sources(self, monitor: StorageDaemonMonitor) -> dict[str, Source]:
        """Open the point in the daemon, for as long as that lives."""
        return reading.open_sources(
            monitor,
            self.settings,
            self.repository,
            self.point.id,
            [disk.target for disk in self.disks],
            force=self.request.force,
        )

    def monitor(self) -> StorageDaemonMonitor:
        """A monitor of the daemon.

        :raises DomainStopped: it is gone.
        """
        return self.daemon.monitor(self.settings.qmp_timeout)

    def daemon_answers(self) -> bool:
        """Whether the daemon lives."""
        try:
            self.monitor().close()
        except DomainStopped:
            return False
        return True

    def end_daemon(self) -> None:
        """End the daemon and remove its directory."""
        self.daemon.end()
        self.daemon.remove()

    def sample(self, disks: tuple[DiskProgress, ...]) -> None:
        """Report progress, and stop where the run must not go on."""
        self.ties.sample(disks)
        self.ties.check(self.engine.journal)

    # -- the end ------------------------------------------------------------------------------

    def _note_what_was_forced(self) -> None:
        for status in self.repository.statuses(self.point.uuid):
            if status.point == self.point.id and status.state != "ok":
                self.note(f"forced: the point is {status.state}: {status.why}")

    def _result(self) -> RestoreResult:
        draft = self.run.draft
        return RestoreResult(
            task_id=self.run.task_id,
            point=self.point.id,
            domain=self.point.domain,
            host=self.settings.host,
            repository=self.run.repository,
            mode=self.request.mode,
            to=str(draft.get("to", "")),
            state="complete",
            started=self.run.started,
            finished=now(),
            disks=tuple(self.restored()),
            name=draft.get("name", ""),
            domain_uuid=draft.get("uuid", ""),
            booted=draft.get("booted", ""),
            notes=tuple(draft["notes"]),
        )


def make_directory(story: Story, to: Path) -> None:
    """Make the destination, and remember which directories were not there before.

    :raises InvalidRequest: it cannot be made.
    """
    made = [place for place in (*reversed(to.parents), to) if not place.exists()]
    story.run.draft["made"] = [*story.run.draft.get("made", []), *map(str, made)]
    story.engine.journal.write(story.run)
    try:
        to.mkdir(parents=True, exist_ok=True)
        for place in made:
            # QEMU's user has to pass, whatever the umask.
            place.chmod(0o755)
    except OSError as error:
        raise InvalidRequest(
            f"Cannot make the directory {to}: {error.strerror}.", "Choose another."
        ) from error


def remove_directories(story: Story) -> None:
    """Take away what :func:`make_directory` made, where nobody has put something there since."""
    take_directories(story.run)


def take_directories(run: Run) -> None:
    """As :func:`remove_directories`, by the journal alone."""
    for made in reversed(run.draft.get("made", [])):
        with contextlib.suppress(OSError):
            Path(made).rmdir()


def stored(path: Path) -> int:
    """The bytes a file takes."""
    return path.stat().st_blocks * 512
