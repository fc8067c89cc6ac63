"""What every run is given: settings, libvirt, the journal, and its ties to the outside."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from virtvault.errors import Cancelled
from virtvault.models import DiskProgress, Progress
from virtvault.moments import now
from virtvault.settings import Settings
from workers.hypervisor import Hypervisor
from workers.jobs import Detached, Pace
from workers.journal import Journal

__all__ = ["Engine", "Ties", "now", "tag_of"]


def tag_of(task_id: str) -> str:
    """Eight hex digits that name a task's nodes, jobs, sockets and the end of its point's id."""
    return hashlib.sha256(task_id.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Engine:
    """The engine of one hypervisor; one per worker process."""

    settings: Settings
    hypervisor: Hypervisor
    journal: Journal

    @classmethod
    def of(cls, settings: Settings) -> Engine:
        """An engine that has opened nothing yet."""
        return cls(settings, Hypervisor(settings), Journal(settings.state_dir))

    @property
    def pace(self) -> Pace:
        """How jobs are polled."""
        return Pace(self.settings.poll_min, self.settings.poll_max, self.settings.stall_seconds)


@dataclass
class Ties:
    """A run's ties to its task: where samples go, and whether the worker is stopping.

    ``report`` must not block and must not raise.
    """

    task_id: str
    report: Callable[[Progress], None] = lambda _: None
    stopping: Callable[[], bool] = lambda: False
    phase: str = "queued"
    instant: str = ""
    domain: str = ""
    exports: dict[str, str] = field(default_factory=dict)
    _samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=16))
    _disks: tuple[DiskProgress, ...] = ()

    def step(self, phase: str, instant: str = "") -> None:
        """Say which step begins."""
        self.phase = phase
        self.instant = instant or self.instant
        self.sample(self._disks)

    def sample(self, disks: tuple[DiskProgress, ...]) -> None:
        """Report where the jobs are; an empty sample repeats the last."""
        self._disks = disks or self._disks
        done = sum(d.done for d in self._disks)
        total = sum(d.total for d in self._disks)
        # Before the first look at the jobs nothing is known: a run that was taken up again does
        # not begin at 0, and counting from there would show a rate that never was.
        if self._disks:
            self._samples.append((time.monotonic(), done))
        first_time, first = self._samples[0] if self._samples else (0.0, 0)
        last_time, last = self._samples[-1] if self._samples else (0.0, 0)
        rate = (last - first) / (last_time - first_time) if last_time > first_time else 0.0
        self.report(
            Progress(
                task_id=self.task_id,
                phase=self.phase,
                done=done,
                total=total,
                rate=max(0.0, rate),
                eta=(total - done) / rate if rate > 0 else -1.0,
                disks=self._disks,
                updated=now(),
                instant=self.instant,
                domain=self.domain,
                exports=self.exports,
            )
        )

    def check(self, journal: Journal) -> None:
        """Raise where the run must not go on.

        :raises Cancelled: somebody asked for it.
        :raises Detached: the worker is stopping.
        """
        if journal.wishes(self.task_id).exists():
            raise Cancelled(
                f"Task {self.task_id} was cancelled; nothing was published.",
                "Enqueue it again where it is still wanted; the next incremental loses nothing.",
            )
        if self.stopping():
            raise Detached
