"""Reading points back and saying what is so of each.

Each image is proven once, however many points stand on it. What was found is said of the point
that owns the image, and of every point asked for that stands on it; it is kept beside the
manifest, where the next backup and every restore look.
"""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from virtvault import schemas
from virtvault.errors import InvalidRequest, RepositoryUnusable, UnknownPoint
from virtvault.models import (
    BootReport,
    DiskVerdict,
    Point,
    SourceReport,
    Verdict,
    VerifyRequest,
    VerifyResult,
)
from workers import verify_boot, verify_source
from workers.backup import Duplicate
from workers.engine import Engine, Ties, now, tag_of
from workers.jobs import Detached
from workers.journal import HeldElsewhere, Run
from workers.repository import DirectoryRepository, open_repository, sidecar
from workers.verify_layer import BAD, UNPROVEN, Finding, examine
from workers.verify_remains import clear_away, give_up
from workers.verify_tally import Tally
from workers.verify_verdict import (
    Known,
    breaks,
    disk_verdict,
    disks_differing,
    newer,
    steps,
    worst,
)

__all__ = ["domains_of", "verify"]

log = logging.getLogger(__name__)


def verify(engine: Engine, request: VerifyRequest, ties: Ties) -> VerifyResult:
    """Verify points, or go on with what an earlier worker had not come to of this task.

    A point that is found bad is a result, not an error.

    :raises BadInput: unknown points, or a comparison with a source that cannot be made.
    :raises RepositoryUnusable: the repository is away: nothing is said of its points.
    :raises Detached: the worker is stopping; the journal has what was proven so far.
    :raises Duplicate: another thread or process holds this very task.
    """
    try:
        with engine.journal.hold(f"verify-{tag_of(ties.task_id)}", ties.task_id):
            # A second delivery after Redis lost the result.
            if (done := engine.journal.finished(ties.task_id)) is not None:
                return schemas.load(VerifyResult, done)
            try:
                repository = open_repository(engine.settings, request.repository)
                return _Verify(engine, request, ties, repository).carry_on()
            except Detached:
                log.info("task %s: detached, its next worker goes on", ties.task_id)
                raise
            except BaseException as error:
                if (run := engine.journal.read(ties.task_id)) is not None:
                    give_up(engine, run, error)
                engine.journal.wishes(ties.task_id).unlink(missing_ok=True)
                if isinstance(error, OSError):
                    raise RepositoryUnusable(
                        f"The repository cannot be read: {error}; nothing is said of its points.",
                        "Mount it, or mend its permissions; then verify again.",
                    ) from error
                raise
    except HeldElsewhere as held:
        raise Duplicate from held


def domains_of(repository: DirectoryRepository, points: Iterable[str]) -> set[str]:
    """The uuids of the domains that points are of, whether their manifests can be read or not.

    Points that are not there (any more) are left out.
    """
    where = _where(repository)
    return {where[point] for point in points if point in where}


def _where(repository: DirectoryRepository) -> dict[str, str]:
    """The domain of each point that is there: one look at each domain's directory."""
    return {
        entry.name: uuid
        for uuid in repository.domains()
        for entry in (repository.path / uuid).iterdir()
    }


class _Verify:
    def __init__(
        self, engine: Engine, request: VerifyRequest, ties: Ties, repository: DirectoryRepository
    ) -> None:
        self.engine = engine
        self.request = request
        self.ties = ties
        self.repository = repository
        begun = engine.journal.read(ties.task_id)
        # Ids begin with the time: the oldest first.
        self.uuids = {}
        where = _where(repository)
        points = request.points or (
            (begun.point,) if begun else (_newest_good(repository, request),)
        )
        for point in sorted(set(points)):
            if point in where:
                self.uuids[point] = where[point]
            elif begun is None:
                repository.find(point)  # says why it is not there
        if not self.uuids:
            raise UnknownPoint("All the points were pruned meanwhile.", "There is nothing to do.")
        self.known = {uuid: self._known(uuid) for uuid in sorted(set(self.uuids.values()))}
        newest = max(self.uuids)
        self.run = begun or Run(
            task_id=ties.task_id,
            kind="verify",
            request=schemas.dump(request),
            domain=self._name(newest),
            uuid=self.uuids[newest],
            repository=repository.name,
            point=newest,
            started=now(),
            draft={"layers": {}, "boots": {}, "sources": {}},
        )
        self.tally = Tally(ties, engine.journal, request.speed)

    def carry_on(self) -> VerifyResult:
        if self.run.phase == "planned":
            self._require_sense()
        self.run.phase = "copying"
        self.engine.journal.write(self.run)
        clear_away(self.engine, self.run)
        findings = self._read()
        # Before the rest, which may fail for reasons that are not the points'.
        verdicts = self._conclude(findings)
        if self.request.boot or self.request.against_source:
            self._look_further(findings)
            verdicts = self._conclude(findings)
        result = VerifyResult(
            task_id=self.run.task_id,
            host=self.engine.settings.host,
            repository=self.repository.name,
            state="bad" if any(verdict.verdict == BAD for verdict in verdicts) else "good",
            started=self.run.started,
            finished=now(),
            verdicts=tuple(verdicts),
        )
        self.engine.journal.finish(self.run.task_id, schemas.dump(result))
        self.engine.journal.wishes(self.run.task_id).unlink(missing_ok=True)
        return result

    # -- the story ----------------------------------------------------------------------------

    def _require_sense(self) -> None:
        """Refuse what cannot be done before hours go into the rest."""
        self.ties.step("preparing")
        if self.request.against_source:
            verify_source.require_comparable(self.engine, self.repository, self._newest())

    def _read(self) -> dict[tuple[str, str], Finding]:
        """Examine every image that the points consist of."""
        layers = {
            (step, target): disk
            for point in self.uuids
            for target in self._targets(point)
            for step, disk in steps(self._of(point), point, target)
            if disk is not None
        }
        done = self.run.draft["layers"]
        for (step, target), disk in layers.items():
            self.tally.expect(target, step, 0 if f"{step} {target}" in done else disk.stored)
        found: dict[tuple[str, str], Finding] = {}
        # Below before above: who looks on sees the oldest point first.
        for step, target in sorted(layers):
            key = f"{step} {target}"
            if key not in done:
                point = self._point(step)
                self.ties.domain = point.domain
                self.ties.step("verifying")
                disk = layers[step, target]
                sampler = self.tally.sampler(target, step)
                finding = examine(self.engine.settings, self.repository, point, disk, sampler)
                done[key] = [finding.verdict, finding.detail, finding.compared]
                self.engine.journal.write(self.run)
            found[step, target] = Finding(*done[key])
        return found

    def _look_further(self, findings: dict[tuple[str, str], Finding]) -> None:
        """Boot what is not bad, and compare the newest with its source."""
        for point in self.uuids if self.request.boot else ():
            if point in self.run.draft["boots"] or self._data(point, findings)[0] == BAD:
                continue
            report = verify_boot.boot(
                self.engine, self.request, self.ties, self.run, self.repository, self._point(point)
            )
            self.run.draft["boots"][point] = schemas.dump(report)
            self.engine.journal.write(self.run)
        if not self.request.against_source or self.run.draft["sources"]:
            return
        newest = self._newest()
        if self._data(newest.id, findings)[0] != BAD:
            self.ties.step("comparing")
            report_ = verify_source.compare(
                self.engine, self.request, self.ties, self.run, self.repository, newest
            )
            self.run.draft["sources"][newest.id] = schemas.dump(report_)
            self.engine.journal.write(self.run)

    def _conclude(self, findings: dict[tuple[str, str], Finding]) -> list[Verdict]:
        """Write down what is so of each point asked for, and of those below that are concerned."""
        owners: dict[str, set[str]] = {point: set(self._targets(point)) for point in self.uuids}
        for step, target in findings:
            owners.setdefault(step, set()).add(target)
        found = [self._verdict(point, owners[point], findings) for point in sorted(owners)]
        # Whatever was missing just now was missing from a repository that is there.
        open_repository(self.engine.settings, self.repository.name)
        verdicts = [verdict for verdict in found if verdict is not None]
        for verdict in verdicts:
            directory = self._directory(verdict.point)
            if directory.is_dir() and not newer(verdict.detail):
                sidecar.write_verdict(directory, verdict)
        return verdicts

    # -- one point ----------------------------------------------------------------------------

    def _verdict(
        self, point: str, targets: set[str], findings: dict[tuple[str, str], Finding]
    ) -> Verdict | None:
        """What is so of a point; None of one that was not asked for and needs nothing said."""
        before = self._before(point)
        source = self._source(point, before)
        differing = disks_differing(source)
        disks = []
        former = {disk.target: disk for disk in before.disks} if before else {}
        for target in self._targets(point):
            if target in targets:
                disk = disk_verdict(self._of(point), point, target, findings)
            else:
                disk = former.get(target, DiskVerdict(target, UNPROVEN, "not read back yet"))
            if disk.verdict != BAD and target in differing:
                disk = replace(disk, verdict=BAD, detail=_lied(differing[target]))
            disks.append(disk)
        verdict, detail = worst(disks)
        if not self._directory(point).is_dir():
            verdict, detail = UNPROVEN, "it was pruned meanwhile"
        elif verdict != BAD and (trouble := self._trouble(point)):
            verdict, detail = UNPROVEN if newer(trouble) else BAD, trouble
        if point not in self.uuids and not any(
            disk.verdict == BAD for disk in (*disks, *former.values()) if disk.target in targets
        ):
            return None
        boot = self.run.draft["boots"].get(point)
        bad = {disk.target for disk in disks if disk.verdict == BAD}
        return Verdict(
            point=point,
            verdict=verdict,
            at=now(),
            host=self.engine.settings.host,
            task_id=self.run.task_id,
            detail=detail,
            disks=tuple(disks),
            breaks=breaks(self._of(point), point, bad) if verdict == BAD else (),
            boot=schemas.load(BootReport, boot) if boot else before.boot if before else None,
            source=source,
        )

    def _data(self, point: str, findings: dict[tuple[str, str], Finding]) -> tuple[str, str]:
        """What is so of a point's disks as they lie in the repository."""
        if trouble := self._trouble(point):
            return BAD, trouble
        known = self._of(point)
        return worst([disk_verdict(known, point, t, findings) for t in self._targets(point)])

    def _trouble(self, point: str) -> str:
        """What is wrong with a point's other files."""
        if trouble := self._of(point).troubles.get(point):
            return trouble
        path = self._directory(point) / "domain.xml"
        try:
            ElementTree.fromstring(path.read_text())  # noqa: S314 - only whether it is whole
        except (OSError, ValueError, ElementTree.ParseError) as error:
            return f"{path} cannot be used: {error}; no domain can be defined from this point"
        return ""

    def _before(self, point: str) -> Verdict | None:
        with suppress(RepositoryUnusable):  # it is about to be replaced
            return sidecar.verdict(self._directory(point))
        return None

    def _source(self, point: str, before: Verdict | None) -> SourceReport | None:
        """What a comparison with the source saw, now or before.

        A difference once seen stays: that other samples show none does not take it back.
        """
        former = before.source if before else None
        found = self.run.draft["sources"].get(point)
        if found is None:
            return former
        source = schemas.load(SourceReport, found)
        seen = set(source.differing) | set(former.differing if former else ())
        return replace(source, differing=tuple(sorted(seen)))

    # -- small things -------------------------------------------------------------------------

    def _known(self, uuid: str) -> Known:
        points, troubles = self.repository.scan(uuid)
        if troubles:
            # Once more: what hinders one reading need not be in the file.
            points, troubles = self.repository.scan(uuid)
        return Known({point.id: point for point in points}, troubles)

    def _of(self, point: str) -> Known:
        return self.known[self._uuid_known(point)]

    def _uuid_known(self, point: str) -> str:
        if point in self.uuids:
            return self.uuids[point]
        return next(uuid for uuid, known in self.known.items() if point in known.points)

    def _directory(self, point: str) -> Path:
        return self.repository.directory(self._uuid_known(point), point)

    def _point(self, point: str) -> Point:
        return self._of(point).points[point]

    def _newest(self) -> Point:
        """The one point that is compared with its source.

        :raises InvalidRequest: that is not clear, or it cannot be read.
        """
        newest = max(self.uuids)
        if len(self.known) > 1:
            raise InvalidRequest(
                f"The points are of {len(self.known)} domains: only one can be compared with its "
                "source at a time.",
                "Verify each domain by itself, or leave --against-source out.",
            )
        if newest not in self._of(newest).points:
            raise InvalidRequest(
                f"Point {newest} cannot be compared with its source: its manifest cannot be used.",
                "Leave --against-source out.",
            )
        return self._point(newest)

    def _name(self, point: str) -> str:
        known = self.known[self.uuids[point]].points
        return known[point].domain if point in known else ""

    def _targets(self, point: str) -> list[str]:
        known = self._of(point).points.get(point)
        return [disk.target for disk in known.disks] if known else []


def _newest_good(repository: DirectoryRepository, request: VerifyRequest) -> str:
    """The newest point of the domain asked for that nothing bad is known of.

    :raises UnknownPoint: it has none.
    """
    statuses = repository.statuses(request.domain)
    good = {status.point for status in statuses if status.state == "ok"}
    points = [point for point in repository.points(request.domain) if point.id in good]
    if not points:
        raise UnknownPoint(
            f"Domain {request.domain} has no good point in repository {repository.name}: there are "
            f"{len(statuses)} in all.",
            "Back it up; `virtvault points` says how its points are.",
        )
    return max(points, key=lambda point: (point.instant, point.id)).id


def _lied(count: int) -> str:
    return (
        f"{count} of its samples differ from the live disk though no bitmap marks them: the point, "
        "or the bitmap that counts from it, has missed a write"
    )
