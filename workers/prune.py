"""Removing points that no rule keeps, read from top to bottom.

Nothing is removed that a kept point needs: it is merged into that first (:mod:`workers.merge`).
What goes is marked before anything else (``pruning.json``), so that nobody builds on it or reads
it, and what was begun is carried on by whoever prunes next. A backup may run meanwhile: what it
stands on is never removed, and the moments in which images change places exclude its beginning.
"""

from __future__ import annotations

import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path

from virtvault import schemas
from virtvault.errors import (
    InvalidRequest,
    NoRoom,
    PointBusy,
    RepositoryUnusable,
    UnknownPoint,
    VirtvaultError,
)
from virtvault.models import KeptPoint, Point, PruneRequest, PruneResult, RemovedPoint
from workers import prune_plan, retention
from workers.backup import Duplicate
from workers.engine import Engine, Ties, now, tag_of
from workers.journal import HeldElsewhere, Run, sync_directory
from workers.merge import BEGUN, MARKED, Damaged, Merging, drop_old_lists, finish_switch
from workers.prune_plan import Merge
from workers.repository import manifest, open_repository, sidecar
from workers.repository.directory import PARTIAL, REMOVED
from workers.retention import Candidate, Decision
from workers.storage_daemon import daemon_of

__all__ = ["prune"]

log = logging.getLogger(__name__)


def prune(engine: Engine, request: PruneRequest, ties: Ties) -> PruneResult:
    """Prune a repository, or one domain in it; carries on what was begun before.

    :raises VirtvaultError: what is kept reads as before; what was begun goes on next time.
    :raises Detached: the worker is stopping; its next one begins anew.
    :raises Duplicate: another thread or process holds this very task.
    """
    try:
        with engine.journal.hold(f"prune-{tag_of(ties.task_id)}", ties.task_id):
            if (done := engine.journal.finished(ties.task_id)) is not None:
                return schemas.load(PruneResult, done)
            return _Prune(engine, request, ties).carry_on()
    except HeldElsewhere as held:
        raise Duplicate from held


class _Prune:
    def __init__(self, engine: Engine, request: PruneRequest, ties: Ties) -> None:
        self.engine = engine
        self.request = request
        self.ties = ties
        self.repository = open_repository(engine.settings, request.repository)
        self.run = engine.journal.read(ties.task_id) or Run(
            task_id=ties.task_id,
            kind="prune",
            request=schemas.dump(request),
            domain="",
            uuid="",
            repository=self.repository.name,
            point="",
            started=now(),
            draft={"removed": []},
        )
        # Of a task that goes on: what it has removed since cannot be looked up any more.
        self.uuids: list[str] = self.run.draft.get("uuids") or self._uuids()
        self.run.draft["uuids"] = self.uuids
        self.kept: list[KeptPoint] = []
        self.postponed: dict[str, str] = {}

    def carry_on(self) -> PruneResult:
        try:
            for uuid in self.uuids:
                self.ties.check(self.engine.journal)
                if self.request.dry_run:
                    self._say(uuid)
                else:
                    self.engine.journal.write(self.run)
                    self._one(uuid)
            result = self._result()
            if not self.request.dry_run:
                self.engine.journal.finish(self.run.task_id, schemas.dump(result))
            return result
        except VirtvaultError:
            # What was begun is in the repository and goes on with the next prune there.
            self.engine.journal.forget(self.run.task_id)
            raise
        finally:
            daemon_of(self.engine.settings.runtime_dir, "prune", tag_of(self.run.task_id)).end()

    # -- one domain ---------------------------------------------------------------------------

    def _one(self, uuid: str) -> None:
        try:
            with self.repository.pruning(uuid, self.run.task_id):
                merging = Merging(self.engine, self.repository, uuid, self.ties, self.request.speed)
                try:
                    self._finish_begun(uuid, merging)
                    self._prune(uuid, merging)
                finally:
                    # What was not begun can be read and built on again.
                    with self.repository.alone(uuid, self.run.task_id):
                        self._unmark(uuid)
        except (PointBusy, Damaged, NoRoom, RepositoryUnusable) as error:
            if len(self.uuids) == 1:
                raise
            # One domain's trouble must not keep the others from being pruned.
            log.warning("task %s: domain %s: %s", self.run.task_id, uuid, error)
            self.postponed[uuid] = str(error)

    def _prune(self, uuid: str, merging: Merging) -> None:
        """Plan, merge, remove; what cannot be merged now makes another plan without it."""
        put_off: dict[str, str] = {}
        while True:
            with self.repository.alone(uuid, self.run.task_id):
                self._unmark(uuid)
                points, decisions = self._decide(uuid)
                plan = self._plan(uuid, points, decisions, put_off)
                self._mark(uuid, plan.removed)
            self._work_on(points)
            if self._merge(merging, plan.merges, put_off):
                break
        found = {point.id: point for point in points}
        self._remove(uuid, [found[id_] for id_ in plan.removed], plan.merges)
        for point in points:
            if point.id not in plan.removed:
                drop_old_lists(self.repository.directory(uuid, point.id))
        self._tell(points, decisions, plan.kept_back, plan.removed)

    def _work_on(self, points: list[Point]) -> None:
        """Say in the journal and to who looks on which domain that is."""
        if points:
            self.run.domain, self.run.uuid = points[-1].domain, points[-1].uuid
            self.ties.domain = self.run.domain
        self.engine.journal.write(self.run)

    def _merge(self, merging: Merging, merges: tuple[Merge, ...], put_off: dict[str, str]) -> bool:
        """Do the merges; false where one cannot be done now, and ``put_off`` then has why."""
        prepared = []
        # All are looked at before the first is begun: a point with several disks goes or stays.
        for merge in merges:
            try:
                prepared.append(merging.prepare(merge))
            except (PointBusy, Damaged) as error:
                if any(self._state(merging.uuid, point) == BEGUN for point in merge.removed):
                    raise
                put_off.update(dict.fromkeys(merge.removed, error.message))
                return False
        for one in prepared:
            merging.do(one)
        return True

    def _finish_begun(self, uuid: str, merging: Merging) -> None:
        """What a killed prune had begun: its merges, its removals."""
        for directory in sorted(self.repository.directory(uuid, "").glob("*-*")):
            if directory.name.endswith(REMOVED):
                shutil.rmtree(directory, ignore_errors=True)
            elif directory.is_dir() and not directory.name.endswith(PARTIAL):
                with self.repository.alone(uuid, self.run.task_id):
                    finish_switch(directory)
        for directory in sorted(self.repository.directory(uuid, "").glob("*-*")):
            mark = sidecar.read(directory, sidecar.PRUNING) if directory.is_dir() else None
            for entry in ((mark or {}).get("merges") or {}).values():
                merge = Merge(
                    entry["target"],
                    entry["top"],
                    tuple(entry["removed"]),
                    entry["below"],
                    tuple(entry["losing"]),
                )
                if self._still(uuid, merge):
                    merging.finish(merge)
                else:
                    merging.forget(merge)  # killed right after its last step

    def _still(self, uuid: str, merge: Merge) -> bool:
        """Whether the kept point stands on what goes, still."""
        top = manifest.read(self.repository.directory(uuid, merge.top))
        return any(d.target == merge.target and d.parent in merge.removed for d in top.disks)

    # -- deciding -----------------------------------------------------------------------------

    def _decide(self, uuid: str) -> tuple[list[Point], dict[str, Decision]]:
        points = self.repository.points(uuid)
        statuses = {status.point: status for status in self.repository.statuses(uuid)}
        if self.request.points:
            chosen = {
                point.id: Decision(False, ("named",))
                if point.id in self.request.points or statuses[point.id].state == "pruning"
                else Decision(True, ("not named",))
                for point in points
            }
            return points, chosen
        candidates = [
            Candidate(
                id=point.id,
                instant=point.instant,
                protected=statuses[point.id].protected,
                state=statuses[point.id].state,
                disks=tuple(disk.target for disk in point.disks),
            )
            for point in points
        ]
        return points, retention.decide(candidates, self.request.rules, datetime.now(UTC))

    def _plan(
        self,
        uuid: str,
        points: list[Point],
        decisions: dict[str, Decision],
        put_off: dict[str, str],
    ) -> prune_plan.Plan:
        needed = self._under_way(uuid) | put_off
        begun = {p.id for p in points if self._state(uuid, p.id) == BEGUN}
        damaged = {
            status.point: f"is {status.state}: {status.why}"
            for status in self.repository.statuses(uuid)
            if status.state in ("bad", "broken")
        }
        unwanted = {id_ for id_, decision in decisions.items() if not decision.keep}
        needed = {id_: why for id_, why in needed.items() if id_ not in begun}
        return prune_plan.plan(points, unwanted, needed, damaged)

    def _under_way(self, uuid: str) -> dict[str, str]:
        """The points that backups under way stand on."""
        found = {}
        for image in self.repository.directory(uuid, "").glob(f"*{PARTIAL}/*.qcow2"):
            try:
                backing = Path(manifest.backing_of(image))
            except RepositoryUnusable:
                continue  # it is just being made, by somebody who waits for our lock
            if backing.parent.parent == Path(".."):
                point = image.parent.name.removesuffix(PARTIAL)
                found[backing.parent.name] = f"the backup of {point} stands on it"
        return found

    # -- marking and removing -----------------------------------------------------------------

    def _mark(self, uuid: str, points: tuple[str, ...]) -> None:
        for point in points:
            directory = self.repository.directory(uuid, point)
            if sidecar.read(directory, sidecar.PRUNING) is None:
                mark = {"task_id": self.run.task_id, "since": now(), "state": MARKED}
                sidecar.write(directory, sidecar.PRUNING, mark)

    def _unmark(self, uuid: str) -> None:
        """Take back what only was to be removed: nothing of it was changed."""
        for path in self.repository.directory(uuid, "").glob(f"*-*/{sidecar.PRUNING}"):
            if self._state(uuid, path.parent.name) == MARKED:
                sidecar.drop(path.parent, sidecar.PRUNING)

    def _state(self, uuid: str, point: str) -> str:
        mark = sidecar.read(self.repository.directory(uuid, point), sidecar.PRUNING)
        return str((mark or {}).get("state", ""))

    def _remove(self, uuid: str, points: list[Point], merges: tuple[Merge, ...]) -> None:
        """One rename each, what stands on others first; then the files."""
        for point in points:
            self.ties.step("removing")
            into = tuple(sorted({m.top for m in merges if point.id in m.removed}))
            directory = self.repository.directory(uuid, point.id)
            gone = directory.with_name(f"{point.id}{REMOVED}")
            freed = sum(path.stat().st_blocks * 512 for path in directory.iterdir())
            with self.repository.alone(uuid, self.run.task_id):
                directory.rename(gone)
                sync_directory(gone.parent)
            self.run.draft["removed"].append(
                schemas.dump(RemovedPoint(point.id, point.domain, into, freed))
            )
            self.engine.journal.write(self.run)
            shutil.rmtree(gone, ignore_errors=True)

    # -- telling ------------------------------------------------------------------------------

    def _say(self, uuid: str) -> None:
        """What would be done."""
        points, decisions = self._decide(uuid)
        plan = self._plan(uuid, points, decisions, {})
        for point in points:
            if point.id in plan.removed:
                into = tuple(sorted({m.top for m in plan.merges if point.id in m.removed}))
                freed = 0 if into else sum(disk.stored for disk in point.disks)
                self.run.draft["removed"].append(
                    schemas.dump(RemovedPoint(point.id, point.domain, into, freed))
                )
        self._tell(points, decisions, plan.kept_back, plan.removed)

    def _tell(
        self,
        points: list[Point],
        decisions: dict[str, Decision],
        kept_back: dict[str, str],
        removed: tuple[str, ...],
    ) -> None:
        self.postponed |= kept_back
        self.kept += [
            KeptPoint(point.id, point.domain, decisions[point.id].reasons)
            for point in points
            if point.id not in removed and point.id not in kept_back
        ]

    def _result(self) -> PruneResult:
        return PruneResult(
            task_id=self.run.task_id,
            host=self.engine.settings.host,
            repository=self.repository.name,
            state="planned" if self.request.dry_run else "complete",
            dry_run=self.request.dry_run,
            started=self.run.started,
            finished=now(),
            kept=tuple(self.kept),
            removed=tuple(
                RemovedPoint(**{**one, "into": tuple(one["into"])})
                for one in self.run.draft["removed"]
            ),
            postponed=self.postponed,
        )

    # -- bad input ----------------------------------------------------------------------------

    def _uuids(self) -> list[str]:
        """The domains meant.

        :raises BadInput: there is no such domain, or a named point may not be removed.
        """
        if self.request.points:
            return sorted({self._removable(point) for point in self.request.points})
        there = self.repository.domains()
        if self.request.domain and self.request.domain not in there:
            raise UnknownPoint(
                f"Repository {self.repository.name} has no points of domain {self.request.domain}.",
                "`virtvault points` lists what is there.",
            )
        return [self.request.domain] if self.request.domain else there

    def _removable(self, id_: str) -> str:
        """The domain of a point that is to be removed by its name.

        :raises InvalidRequest: it is protected, or the next incremental builds on it.
        """
        point = self.repository.find(id_)
        directory = self.repository.directory(point.uuid, id_)
        if reason := sidecar.protection(directory):
            raise InvalidRequest(
                f"Point {id_} is protected: {reason}.", f"`virtvault unprotect {id_}` first."
            )
        points = self.repository.points(point.uuid)
        for disk in point.disks:
            having = [p for p in points if any(d.target == disk.target for d in p.disks)]
            if max(having, key=lambda p: (p.instant, p.id)).id == id_:
                raise InvalidRequest(
                    f"Point {id_} is the newest of disk {disk.target}: the next incremental "
                    "builds on it.",
                    "Take another point first.",
                )
        return point.uuid
