"""Removing points that no rule keeps, read from top to bottom.

Nothing is removed that a kept point needs: it is merged into that first (:mod:`workers.merge`).
What goes is marked before anything else (``pruning.json``), so that nobody builds on it or reads
it, and what was begun is carried on by whoever prunes next. A backup may run meanwhile: what it
stands on is never removed, and the moments in which images change places exclude its beginning.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from virtvault import schemas
from virtvault.errors import (
    Cancelled,
    InvalidRequest,
    RepositoryUnusable,
    UnknownPoint,
    VirtvaultError,
)
from virtvault.models import (
    KeptPoint,
    Point,
    PointStatus,
    PruneRequest,
    PruneResult,
    RemovedPoint,
)
from workers import prune_plan, retention
from workers.backup import Duplicate
from workers.engine import Engine, Ties, now, tag_of
from workers.journal import HeldElsewhere, Run, sync_directory
from workers.merge import BEGUN, MARKED, Damaged, Merging, drop_old_lists, finish_switch
from workers.prune_plan import Merge
from workers.repository import manifest, open_repository, sidecar
from workers.repository.directory import PARTIAL, POINT_ID, REMOVED
from workers.retention import TOP, Candidate, Decision
from workers.storage_daemon import daemon_of

__all__ = ["prune"]

log = logging.getLogger(__name__)

TARGET = re.compile(r"[a-z]{2,4}[a-z0-9]{0,6}")


def prune(
    engine: Engine,
    request: PruneRequest,
    ties: Ties,
    gone: Callable[[str, str], None] = lambda _repository, _point: None,
) -> PruneResult:
    """Prune a repository, or one domain in it; carries on what was begun before.

    :param gone: told the repository's id and the point's as soon as one is removed, since the rest
        may fail.
    :raises VirtvaultError: what is kept reads as before; what was begun goes on next time.
    :raises Detached: the worker is stopping; its next one begins anew.
    :raises Duplicate: another thread or process holds this very task.
    """
    try:
        with engine.journal.hold(f"prune-{tag_of(ties.task_id)}", ties.task_id):
            if (done := engine.journal.finished(ties.task_id)) is not None:
                return schemas.load(PruneResult, done)
            return _Prune(engine, request, ties, gone).carry_on()
    except HeldElsewhere as held:
        raise Duplicate from held


class _Prune:
    def __init__(
        self,
        engine: Engine,
        request: PruneRequest,
        ties: Ties,
        gone: Callable[[str, str], None],
    ) -> None:
        self.engine = engine
        self.gone = gone
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
        except Cancelled as error:
            self.engine.journal.forget(self.run.task_id)
            raise Cancelled(
                f"Task {self.run.task_id} was cancelled: {len(self.run.draft['removed'])} points "
                "are removed. What is kept reads as before.",
                "What was begun goes on with the next prune.",
            ) from error
        except Exception:
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
        except Cancelled:
            raise
        except VirtvaultError as error:
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
                # Before the points: a backup that commits now is in one of the two.
                needed = self._needed(uuid)
                points, decisions = self._decide(uuid)
                plan = self._plan(uuid, points, decisions, needed | put_off)
                self._mark(uuid, plan.removed)
            self._work_on(points)
            if self._put_off_busy(merging, plan, put_off):
                continue
            if self._merge(merging, plan.merges, put_off):
                break
        found = {point.id: point for point in points}
        self._remove(uuid, [found[id_] for id_ in plan.removed], plan.merges)
        for point in points:
            if point.id not in plan.removed:
                drop_old_lists(self.repository.directory(uuid, point.id))
        self._tell(points, decisions, plan.kept_back, plan.removed)

    def _put_off_busy(
        self, merging: Merging, plan: prune_plan.Plan, put_off: dict[str, str]
    ) -> bool:
        """See who reads what goes or gets another image; whether that puts anything off."""
        before = len(put_off)
        tops = {merge.top for merge in plan.merges}
        for point, why in merging.busy(sorted({*plan.removed, *tops})).items():
            stay = {point} if point in plan.removed else set()
            stay |= {id_ for merge in plan.merges if merge.top == point for id_ in merge.removed}
            # What was begun has to be ended, and can be: it was not being read then.
            put_off |= {id_: why for id_ in stay if self._state(merging.uuid, id_) != BEGUN}
        return len(put_off) > before

    def _work_on(self, points: list[Point]) -> None:
        """Say in the journal and to who looks on which domain that is."""
        if points:
            self.run.domain, self.run.uuid = points[-1].domain, points[-1].uuid
            self.ties.domain = self.run.domain
        # From here on it has block jobs, which take commands.
        self.run.phase = "copying"
        self.engine.journal.write(self.run)

    def _merge(self, merging: Merging, merges: tuple[Merge, ...], put_off: dict[str, str]) -> bool:
        """Do the merges; false where one cannot be done now, and ``put_off`` then has why."""
        prepared = []
        # All are looked at before the first is begun: a point with several disks goes or stays.
        for merge in merges:
            try:
                prepared.append(merging.prepare(merge))
            except Damaged as error:
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
                merge = _begun_merge(directory, entry)
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
            self._require_removable(points, statuses)
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
                disks=tuple(
                    f"{disk.target} {TOP}" if disk.sync == "top" else disk.target
                    for disk in point.disks
                ),
            )
            for point in points
        ]
        return points, retention.decide(candidates, self.request.rules, datetime.now(UTC))

    def _plan(
        self,
        uuid: str,
        points: list[Point],
        decisions: dict[str, Decision],
        needed: dict[str, str],
    ) -> prune_plan.Plan:
        begun = {p.id for p in points if self._state(uuid, p.id) == BEGUN}
        damaged = {
            status.point: f"is {status.state}: {status.why}"
            for status in self.repository.statuses(uuid)
            if status.state in ("bad", "broken")
        }
        unwanted = {id_ for id_, decision in decisions.items() if not decision.keep}
        needed = {id_: why for id_, why in needed.items() if id_ not in begun}
        return prune_plan.plan(points, unwanted, needed, damaged)

    def _needed(self, uuid: str) -> dict[str, str]:
        """What is stood on by what is no point that can be read: backups under way, and points
        whose manifest cannot be used (now, or by this version).

        :raises RepositoryUnusable: what such a one stands on cannot be told, so nothing may go.
        """
        found = {}
        _, troubles = self.repository.scan(uuid)
        for directory in self.repository.directory(uuid, "").glob("*-*"):
            point = directory.name.removesuffix(PARTIAL)
            under_way = directory.name != point
            if not under_way and directory.name not in troubles:
                continue
            for image in directory.glob("*.qcow2"):
                try:
                    backing = Path(manifest.backing_of(image))
                except RepositoryUnusable as error:
                    if under_way:
                        continue  # it is just being made, by somebody who waits for our lock
                    raise RepositoryUnusable(
                        f"Point {point} cannot be read, nor can be told what it stands on: "
                        f"{error.message}",
                        f"Restore its files, or remove {directory}; until then nothing of this "
                        "domain is pruned.",
                    ) from error
                if backing.parent.parent == Path(".."):
                    found[backing.parent.name] = (
                        f"the backup of {point} stands on it"
                        if under_way
                        else f"point {point} stands on it, whose manifest cannot be used"
                    )
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
            self.gone(self.repository.id, point.id)
            shutil.rmtree(gone, ignore_errors=True)

    # -- telling ------------------------------------------------------------------------------

    def _say(self, uuid: str) -> None:
        """What would be done."""
        needed = self._needed(uuid)
        points, decisions = self._decide(uuid)
        plan = self._plan(uuid, points, decisions, needed)
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

        :raises BadInput: there is no such domain or point.
        """
        if self.request.points:
            return sorted({self.repository.find(point).uuid for point in self.request.points})
        there = self.repository.domains()
        if self.request.domain and self.request.domain not in there:
            raise UnknownPoint(
                f"Repository {self.repository.name} has no points of domain {self.request.domain}.",
                "`virtvault points` lists what is there.",
            )
        return [self.request.domain] if self.request.domain else there

    def _require_removable(self, points: list[Point], statuses: dict[str, PointStatus]) -> None:
        """:raises InvalidRequest: a named point is protected, or the next incremental needs it."""
        for point in points:
            status = statuses[point.id]
            if point.id not in self.request.points or status.state == "pruning":
                continue
            if status.protected:
                raise InvalidRequest(
                    f"Point {point.id} is protected: {status.protected}.",
                    f"`virtvault unprotect {point.id}` first.",
                )
            for disk in point.disks:
                having = [
                    p
                    for p in points
                    if any(d.target == disk.target and d.sync != "top" for d in p.disks)
                ]
                if having and max(having, key=lambda p: (p.instant, p.id)).id == point.id:
                    raise InvalidRequest(
                        f"Point {point.id} is the newest of disk {disk.target}: the next "
                        "incremental builds on it.",
                        "Take another point first.",
                    )


def _begun_merge(directory: Path, entry: object) -> Merge:
    """The merge that ``pruning.json`` says was begun into the image of the point in ``directory``.

    :raises RepositoryUnusable: it says no such thing: it was altered.
    """
    try:
        assert isinstance(entry, dict)
        merge = Merge(
            str(entry["target"]),
            str(entry["top"]),
            tuple(map(str, entry["removed"])),
            str(entry["below"]),
            tuple(map(str, entry["losing"])),
        )
        points = [merge.top, *merge.removed, *merge.losing, *([merge.below] if merge.below else [])]
        sane = TARGET.fullmatch(merge.target) and all(map(POINT_ID.fullmatch, points))
        if not sane or merge.base != directory.name or not isinstance(entry["expected"], dict):
            raise ValueError
    except (AssertionError, KeyError, TypeError, ValueError, IndexError) as error:
        raise RepositoryUnusable(
            f"{directory / sidecar.PRUNING} does not say what was begun: it was altered.",
            "Restore the file, or remove the points that `virtvault points` shows as pruning.",
        ) from error
    return merge
