"""A point's disks served read-only over NBD, until somebody closes that or its time is up.

A storage daemon of the run's own serves them: it outlives the worker, holds the point's own images
against prune, and is all that a reader's requests reach.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from pathlib import Path

from virtvault import schemas
from virtvault.errors import (
    DomainStopped,
    JobFailed,
    MonitorError,
    NotReachable,
    VirtvaultError,
)
from virtvault.models import Point, ServeRequest, ServeResult
from workers import reading, slots, storage_daemon
from workers.backup import Duplicate
from workers.engine import Engine, Ties, now, tag_of
from workers.exports import Export
from workers.isolation import unix
from workers.jobs import Detached
from workers.journal import HeldElsewhere, Run
from workers.repository import DirectoryRepository, open_repository
from workers.storage_daemon import StorageDaemon, StorageDaemonMonitor

__all__ = ["daemon_of", "serve", "serve_nodes"]

log = logging.getLogger(__name__)

# Seconds between two looks whether a reader would still be answered.
LOOK = 1.0


def daemon_of(engine: Engine, task_id: str) -> StorageDaemon:
    """The storage daemon that serves a point, running or not."""
    return storage_daemon.daemon_of(engine.settings.runtime_dir, "serve", tag_of(task_id))


def serve_nodes(monitor: StorageDaemonMonitor, socket: Path, nodes: dict[str, str]) -> None:
    """Export nodes read-only under the names that ``nodes`` maps to them."""
    monitor.execute("nbd-server-start", addr=unix(str(socket)))
    for name, node in nodes.items():
        monitor.execute(
            "block-export-add", type="nbd", id=name, node_name=node, name=name, writable=False
        )


def serve(engine: Engine, request: ServeRequest, ties: Ties) -> ServeResult:
    """Serve a point, or tend what an earlier worker opened of this task, until it ends.

    :raises BadInput: unknown point or disk, or one that a verify found bad; nothing was opened.
    :raises JobFailed: the storage daemon ended: who read from it sees errors.
    :raises Detached: the worker is stopping; the disks stay served.
    :raises Duplicate: another thread or process holds this very task.
    """
    try:
        with engine.journal.hold(f"serve-{tag_of(ties.task_id)}", ties.task_id):
            # A second delivery after Redis lost the result.
            if (done := engine.journal.finished(ties.task_id)) is None:
                try:
                    done = schemas.dump(_Serve(engine, request, ties).carry_on())
                    engine.journal.remember(ties.task_id, done)
                except Detached:
                    log.info("task %s: detached, its point stays served", ties.task_id)
                    raise
                except BaseException:
                    _end(engine, ties.task_id)
                    raise
            # The result is kept: who is killed here has only this to do again.
            _end(engine, ties.task_id)
            return schemas.load(ServeResult, done)
    except HeldElsewhere as held:
        raise Duplicate from held


def _end(engine: Engine, task_id: str) -> None:
    daemon = daemon_of(engine, task_id)
    daemon.end()
    shutil.rmtree(daemon.directory, ignore_errors=True)
    engine.journal.forget(task_id)
    engine.journal.wishes(task_id).unlink(missing_ok=True)


class _Serve:
    def __init__(self, engine: Engine, request: ServeRequest, ties: Ties) -> None:
        self.engine = engine
        self.request = request
        self.ties = ties
        self.daemon = daemon_of(engine, ties.task_id)
        self.socket = self.daemon.directory / "nbd.sock"
        self.repository: DirectoryRepository = open_repository(engine.settings, request.repository)
        self.point: Point = self.repository.find(request.point)
        self.disks = [disk.target for disk in reading.choose(self.point, request.disks)]
        ties.domain = self.point.domain
        self.run = engine.journal.read(ties.task_id) or Run(
            task_id=ties.task_id,
            kind="serve",
            request=schemas.dump(request),
            domain=self.point.domain,
            uuid=self.point.uuid,
            repository=self.repository.name,
            point=self.point.id,
            started=now(),
        )

    def carry_on(self) -> ServeResult:
        """Open it where no earlier worker has, and tend it to its end."""
        if self.run.phase != "open":
            self._open()
        return self._result(self._tend())

    def _open(self) -> None:
        self.ties.step("preparing")
        for disk in self.disks:  # refused before a process is started for it
            self.repository.chain(self.point, disk, force=self.request.force)
        slots.require_one_for_others(self.engine, self.run.task_id)
        self.engine.journal.write(self.run)
        self.daemon.end()
        shutil.rmtree(self.daemon.directory, ignore_errors=True)
        self.ties.check(self.engine.journal)
        self.daemon.start()
        with contextlib.closing(self._monitor()) as monitor:
            sources = reading.open_sources(
                monitor,
                self.engine.settings,
                self.repository,
                self.point.id,
                self.disks,
                force=self.request.force,
            )
            nodes = {target: source.node for target, source in sources.items()}
            serve_nodes(monitor, self.socket, nodes)
        self.run.phase = "open"
        self.run.targets = list(nodes)
        self.run.draft = {"opened": time.time()}
        self.engine.journal.write(self.run)

    def _tend(self) -> str:
        """Look after it until it is closed by hand (``closed``) or its time is up."""
        self.ties.exports = {t: Export(t, str(self.socket), "").url for t in self.run.targets}
        self.ties.step("open", self.point.instant)
        wish = self.engine.journal.wishes(self.run.task_id)
        # By the clock on the wall: a worker that takes over goes by the same.
        end = self.run.draft["opened"] + self.request.seconds if self.request.seconds else None
        while not wish.exists():
            if end is not None and time.time() >= end:
                return "timed out"
            if self.ties.stopping():
                raise Detached
            self._look()
            self.ties.sample(())
            until = time.monotonic() + LOOK
            while (
                time.monotonic() < until
                and not wish.exists()
                and not self.ties.stopping()
                and (end is None or time.time() < end)
            ):
                time.sleep(0.05)
        return "closed"

    def _look(self) -> None:
        """See that all is served still.

        :raises JobFailed: it is not.
        """
        try:
            with contextlib.closing(self._monitor()) as monitor:
                served = {export["id"] for export in monitor.execute("query-block-exports")}
        except NotReachable as error:
            # Storage that hangs holds up its answer; who reads waits just so.
            log.warning("task %s: not looked after now: %s", self.run.task_id, error)
            return
        except (DomainStopped, MonitorError) as error:
            raise self._ended("its storage daemon is gone") from error
        if missing := set(self.run.targets) - served:
            raise self._ended(f"{', '.join(sorted(missing))} was taken out of its storage daemon")

    def _ended(self, why: str) -> VirtvaultError:
        return JobFailed(
            f"Point {self.point.id} is not served any more: {why}. Who read from it sees errors.",
            "Export it again; the point itself is as it was.",
        )

    def _monitor(self) -> StorageDaemonMonitor:
        return self.daemon.monitor(self.engine.settings.qmp_timeout)

    def _result(self, state: str) -> ServeResult:
        return ServeResult(
            task_id=self.run.task_id,
            point=self.point.id,
            domain=self.point.domain,
            host=self.engine.settings.host,
            repository=self.run.repository,
            state=state,
            started=self.run.started,
            finished=now(),
        )
