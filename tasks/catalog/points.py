"""Points and how they are.

The manifests are the truth; this can be filled again from them. What is recorded may come twice,
late and in any order: a pruned point does not come back, and neither does what a point was before
others were merged into it, or an older look at how it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from tasks.catalog.database import Database
from tasks.catalog.newest import Newest, derive, derive_all
from tasks.catalog.tables import NewestRow, PointDiskRow, PointRow, RemovedRow, StatusRow
from virtvault import schemas
from virtvault.models import Point, PointStatus

__all__ = ["Points"]


class Points(Database):
    """The catalog's points."""

    def record_point(self, point: Point) -> None:
        """Add or replace a point."""
        with self._writing() as session:
            _put_point(session, point)
            _drop_removed(session, point.repository_id, [point.id])
            derive(session, [(point.uuid, point.repository_id)])

    def record_statuses(self, statuses: list[PointStatus], at: str) -> None:
        """All points of their domains were so at ``at``; one that is not among them was away."""
        domains = {(status.uuid, status.repository_id) for status in statuses}
        there = {(status.point, status.repository_id) for status in statuses}
        with self._writing() as session:
            for status in statuses:
                _put_status(session, status, at)
            for uuid, repository_id in domains:
                query = select(StatusRow).where(
                    StatusRow.repository_id == repository_id,
                    StatusRow.uuid == uuid,
                    StatusRow.at < at,
                )
                for row in session.scalars(query):
                    if (row.point, repository_id) not in there:
                        before = schemas.load(PointStatus, json.loads(row.status))
                        away = replace(before, state="broken", why=f"it was not there on {at}")
                        row.status, row.at = json.dumps(schemas.dump(away)), at
            for repository_id in {of for _, of in domains}:
                told = [id_ for id_, of in there if of == repository_id]
                _drop_removed(session, repository_id, told)
            derive(session, domains)

    def record_removed(self, repository_id: str, points: list[str], at: str) -> None:
        """Points were pruned."""
        with self._writing() as session:
            changed = _domains_of(session, repository_id, points)
            for id_ in points:
                session.merge(RemovedRow(id=id_, repository_id=repository_id, at=at))
                _drop(session, repository_id, id_)
            derive(session, changed)

    def rebuild(
        self,
        repository_id: str,
        uuid: str,
        at: str,
        points: list[Point],
        statuses: list[PointStatus],
        gone: list[str],
        unreadable: list[str],
    ) -> None:
        """Replace a domain's rows by what its repository held at ``at``, in one transaction.

        :param gone: ids that were known before that look and were not found by it. Others that it
            has not found stay: they were recorded since.
        :param unreadable: ids whose manifests cannot be used: they have a status alone.
        """
        with self._writing() as session:
            for id_ in gone:
                _drop(session, repository_id, id_)
            for id_ in unreadable:
                _drop_manifest(session, repository_id, id_)
            session.execute(
                delete(StatusRow).where(
                    StatusRow.repository_id == repository_id,
                    StatusRow.uuid == uuid,
                    StatusRow.at <= at,
                )
            )
            pruned_since = set()
            for id_ in {status.point for status in statuses}:
                removed = session.get(RemovedRow, (id_, repository_id))
                if removed is not None and removed.at < at:
                    session.delete(removed)  # it has been brought back
                elif removed is not None:
                    pruned_since.add(id_)
            for point in points:
                if point.id not in pruned_since:
                    _put_point(session, point)
            for status in statuses:
                if status.point not in pruned_since:
                    _put_status(session, status, at)
            derive(session, [(uuid, repository_id)])

    def points(self, domain: str = "") -> list[dict[str, Any]]:
        """Manifests, oldest first, of one domain (name or uuid) or all."""
        query = select(PointRow.manifest).order_by(PointRow.instant, PointRow.id)
        if domain:
            query = query.where((PointRow.domain == domain) | (PointRow.uuid == domain))
        with self._reading() as session:
            return [json.loads(text) for text in session.scalars(query)]

    def show(self, point: str) -> dict[str, Any] | None:
        """One manifest, None where the catalog has none."""
        query = select(PointRow.manifest).where(PointRow.id == point)
        with self._reading() as session:
            text = session.scalars(query).first()
        return json.loads(text) if text else None

    def statuses(self, domain: str = "") -> list[dict[str, Any]]:
        """How points are, as far as that was told, of one domain (name or uuid) or all."""
        query = select(StatusRow.status).order_by(StatusRow.point)
        if domain:
            named = select(PointRow.uuid).where(PointRow.domain == domain)
            query = query.where((StatusRow.uuid == domain) | StatusRow.uuid.in_(named))
        with self._reading() as session:
            return [json.loads(text) for text in session.scalars(query)]

    def fate(self, point: str) -> dict[str, Any]:
        """How one point is (``status``, or None) and when it was pruned (``removed``, or empty)."""
        status = select(StatusRow.status).where(StatusRow.point == point)
        removed = select(RemovedRow.at).where(RemovedRow.id == point)
        with self._reading() as session:
            text = session.scalars(status).first()
            return {
                "status": json.loads(text) if text else None,
                "removed": session.scalars(removed).first() or "",
            }

    def known(self) -> dict[str, dict[str, list[str]]]:
        """Every point's id, by repository id and domain uuid, the unreadable ones too."""
        found: dict[str, dict[str, list[str]]] = {}
        points = select(PointRow.repository_id, PointRow.uuid, PointRow.id)
        statuses = select(StatusRow.repository_id, StatusRow.uuid, StatusRow.point)
        with self._reading() as session:
            for repository_id, uuid, id_ in session.execute(points.union(statuses)):
                found.setdefault(repository_id, {}).setdefault(uuid, []).append(id_)
        return found

    def newest(self, uuid: str = "") -> list[Newest]:
        """The newest good point of each domain (or of one) in each repository it has any in."""
        names = Newest.__dataclass_fields__
        query = select(*(getattr(NewestRow, name) for name in names))
        if uuid:
            query = query.where(NewestRow.uuid == uuid)
        with self._reading() as session:
            return [Newest(*row) for row in session.execute(query)]

    def _derive(self, session: Session) -> None:
        super()._derive(session)
        derive_all(session)


def _put_point(session: Session, point: Point) -> None:
    before = session.get(PointRow, (point.id, point.repository_id))
    if before is not None and not set(json.loads(before.manifest).get("merged", ())) <= set(
        point.merged
    ):
        return  # a late record of what it was before the last merge
    _drop_manifest(session, point.repository_id, point.id)
    session.add(
        PointRow(
            id=point.id,
            repository_id=point.repository_id,
            uuid=point.uuid,
            domain=point.domain,
            host=point.host,
            instant=point.instant,
            manifest=json.dumps(schemas.dump(point)),
            repository=point.repository,
            started=point.started,
            finished=point.finished,
            stored=sum(disk.stored for disk in point.disks),
            transferred=sum(disk.transferred for disk in point.disks),
        )
    )
    for disk in point.disks:
        session.add(
            PointDiskRow(
                point=point.id,
                repository_id=point.repository_id,
                target=disk.target,
                sync=disk.sync,
                parent=disk.parent,
                stored=disk.stored,
                transferred=disk.transferred,
                virtual_size=disk.virtual_size,
            )
        )


def _put_status(session: Session, status: PointStatus, at: str) -> None:
    before = session.get(StatusRow, (status.point, status.repository_id))
    if before is not None and before.at > at:
        return
    session.merge(
        StatusRow(
            point=status.point,
            repository_id=status.repository_id,
            uuid=status.uuid,
            at=at,
            status=json.dumps(schemas.dump(status)),
        )
    )


def _domains_of(
    session: Session, repository_id: str, points: Iterable[str]
) -> list[tuple[str, str]]:
    found = (session.get(PointRow, (id_, repository_id)) for id_ in points)
    return [(row.uuid, repository_id) for row in found if row is not None]


def _drop_removed(session: Session, repository_id: str, points: list[str]) -> None:
    """Take back what was just written of pruned points."""
    for id_ in points:
        if session.get(RemovedRow, (id_, repository_id)) is not None:
            _drop(session, repository_id, id_)


def _drop(session: Session, repository_id: str, point: str) -> None:
    _drop_manifest(session, repository_id, point)
    session.execute(
        delete(StatusRow).where(StatusRow.point == point, StatusRow.repository_id == repository_id)
    )


def _drop_manifest(session: Session, repository_id: str, point: str) -> None:
    session.execute(
        delete(PointDiskRow).where(
            PointDiskRow.point == point, PointDiskRow.repository_id == repository_id
        )
    )
    session.execute(
        delete(PointRow).where(PointRow.id == point, PointRow.repository_id == repository_id)
    )
