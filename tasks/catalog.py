"""The central index of all points and runs, in any SQL database SQLAlchemy speaks to.

The manifests are the truth; this can be filled again from them. What is recorded may come twice,
late and in any order: a pruned point does not come back, and neither does what a point was before
others were merged into it, or an older look at how it is.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from sqlalchemy import String, Text, create_engine, delete, event, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from virtvault import schemas
from virtvault.models import Point, PointStatus

__all__ = ["Catalog"]


class _Base(DeclarativeBase):
    pass


class _Point(_Base):
    __tablename__ = "points"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    repository_id: Mapped[str] = mapped_column(String(8), primary_key=True)
    uuid: Mapped[str] = mapped_column(String(36), index=True)
    domain: Mapped[str] = mapped_column(String(300), index=True)
    host: Mapped[str] = mapped_column(String(100))
    instant: Mapped[str] = mapped_column(String(30))
    manifest: Mapped[str] = mapped_column(Text)


class _Status(_Base):
    """How a point was at ``at``: a point whose manifest cannot be read has only this."""

    __tablename__ = "statuses"
    point: Mapped[str] = mapped_column(String(40), primary_key=True)
    repository_id: Mapped[str] = mapped_column(String(8), primary_key=True)
    uuid: Mapped[str] = mapped_column(String(36), index=True)
    at: Mapped[str] = mapped_column(String(30))
    status: Mapped[str] = mapped_column(Text)


class _Removed(_Base):
    """A point that was pruned: whoever still asks for it is told, and no late record revives it."""

    __tablename__ = "removed"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    repository_id: Mapped[str] = mapped_column(String(8), primary_key=True)
    at: Mapped[str] = mapped_column(String(30))


class _Run(_Base):
    __tablename__ = "runs"
    task_id: Mapped[str] = mapped_column(String(100), primary_key=True)
    task: Mapped[str] = mapped_column(String(100))
    host: Mapped[str] = mapped_column(String(100))
    state: Mapped[str] = mapped_column(String(20))
    started: Mapped[str] = mapped_column(String(30))
    finished: Mapped[str] = mapped_column(String(30))
    request: Mapped[str] = mapped_column(Text)
    error: Mapped[str] = mapped_column(Text)
    mend: Mapped[str] = mapped_column(Text)


class Catalog:
    """The catalog at a database URL. Tables are made at first use."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, pool_pre_ping=True)
        if self._engine.dialect.name == "sqlite":
            # Readers do not wait for the writer; a busy writer is waited for.
            @event.listens_for(self._engine, "connect")
            def _pragmas(connection: Any, _record: Any) -> None:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA busy_timeout=10000")

        _Base.metadata.create_all(self._engine)

    def record(self, payload: dict[str, Any]) -> None:
        """What a hypervisor's spool (:mod:`tasks.spool`) has to tell."""
        if "point" in payload:
            self.record_point(schemas.load(Point, payload["point"]))
        if "run" in payload:
            self.record_run(payload["run"])
        if "statuses" in payload:
            statuses = [schemas.load(PointStatus, item) for item in payload["statuses"]]
            self.record_statuses(statuses, payload["at"])
        if "removed" in payload:
            self.record_removed(**payload["removed"])

    def record_point(self, point: Point) -> None:
        """Add or replace a point."""
        with Session(self._engine) as session, session.begin():
            _put_point(session, point)
            _drop_removed(session, point.repository_id, [point.id])

    def record_statuses(self, statuses: list[PointStatus], at: str) -> None:
        """All points of their domains were so at ``at``; one that is not among them was away."""
        domains = {(status.repository_id, status.uuid) for status in statuses}
        there = {(status.point, status.repository_id) for status in statuses}
        with Session(self._engine) as session, session.begin():
            for status in statuses:
                _put_status(session, status, at)
            for repository_id, uuid in domains:
                query = select(_Status).where(
                    _Status.repository_id == repository_id, _Status.uuid == uuid, _Status.at < at
                )
                for row in session.scalars(query):
                    if (row.point, repository_id) not in there:
                        before = schemas.load(PointStatus, json.loads(row.status))
                        away = replace(before, state="broken", why=f"it was not there on {at}")
                        row.status, row.at = json.dumps(schemas.dump(away)), at
            for repository_id, _ in domains:
                told = [id_ for id_, of in there if of == repository_id]
                _drop_removed(session, repository_id, told)

    def record_removed(self, repository_id: str, points: list[str], at: str) -> None:
        """Points were pruned."""
        with Session(self._engine) as session, session.begin():
            for id_ in points:
                session.merge(_Removed(id=id_, repository_id=repository_id, at=at))
                _drop(session, repository_id, id_)

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
        with Session(self._engine) as session, session.begin():
            for id_ in gone:
                _drop(session, repository_id, id_)
            session.execute(
                delete(_Point).where(
                    _Point.repository_id == repository_id, _Point.id.in_(unreadable)
                )
            )
            session.execute(
                delete(_Status).where(
                    _Status.repository_id == repository_id, _Status.uuid == uuid, _Status.at <= at
                )
            )
            pruned_since = set()
            for id_ in {status.point for status in statuses}:
                removed = session.get(_Removed, (id_, repository_id))
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

    def record_run(self, run: dict[str, Any]) -> None:
        """Add or replace a run's end. A failure never replaces a success of the same task."""
        row = _Run(**{**run, "request": json.dumps(run["request"])})
        with Session(self._engine) as session, session.begin():
            before = session.get(_Run, row.task_id)
            if before is None or before.state != "complete":
                session.merge(row)

    def points(self, domain: str = "") -> list[dict[str, Any]]:
        """Manifests, oldest first, of one domain (name or uuid) or all."""
        query = select(_Point.manifest).order_by(_Point.instant, _Point.id)
        if domain:
            query = query.where((_Point.domain == domain) | (_Point.uuid == domain))
        with Session(self._engine) as session:
            return [json.loads(text) for text in session.scalars(query)]

    def show(self, point: str) -> dict[str, Any] | None:
        """One manifest, None where the catalog has none."""
        query = select(_Point.manifest).where(_Point.id == point)
        with Session(self._engine) as session:
            text = session.scalars(query).first()
        return json.loads(text) if text else None

    def statuses(self, domain: str = "") -> list[dict[str, Any]]:
        """How points are, as far as that was told, of one domain (name or uuid) or all."""
        query = select(_Status.status).order_by(_Status.point)
        if domain:
            named = select(_Point.uuid).where(_Point.domain == domain)
            query = query.where((_Status.uuid == domain) | _Status.uuid.in_(named))
        with Session(self._engine) as session:
            return [json.loads(text) for text in session.scalars(query)]

    def fate(self, point: str) -> dict[str, Any]:
        """How one point is (``status``, or None) and when it was pruned (``removed``, or empty)."""
        status = select(_Status.status).where(_Status.point == point)
        removed = select(_Removed.at).where(_Removed.id == point)
        with Session(self._engine) as session:
            text = session.scalars(status).first()
            return {
                "status": json.loads(text) if text else None,
                "removed": session.scalars(removed).first() or "",
            }

    def known(self) -> dict[str, dict[str, list[str]]]:
        """Every point's id, by repository id and domain uuid, the unreadable ones too."""
        found: dict[str, dict[str, list[str]]] = {}
        points = select(_Point.repository_id, _Point.uuid, _Point.id)
        statuses = select(_Status.repository_id, _Status.uuid, _Status.point)
        with Session(self._engine) as session:
            for repository_id, uuid, id_ in session.execute(points.union(statuses)):
                found.setdefault(repository_id, {}).setdefault(uuid, []).append(id_)
        return found

    def runs(self) -> list[dict[str, Any]]:
        """All runs' ends, oldest first."""
        with Session(self._engine) as session:
            rows = session.scalars(select(_Run).order_by(_Run.started))
            return [{c.name: getattr(row, c.name) for c in _Run.__table__.columns} for row in rows]


def _put_point(session: Session, point: Point) -> None:
    before = session.get(_Point, (point.id, point.repository_id))
    if before is not None and not set(json.loads(before.manifest).get("merged", ())) <= set(
        point.merged
    ):
        return  # a late record of what it was before the last merge
    session.merge(
        _Point(
            id=point.id,
            repository_id=point.repository_id,
            uuid=point.uuid,
            domain=point.domain,
            host=point.host,
            instant=point.instant,
            manifest=json.dumps(schemas.dump(point)),
        )
    )


def _put_status(session: Session, status: PointStatus, at: str) -> None:
    before = session.get(_Status, (status.point, status.repository_id))
    if before is not None and before.at > at:
        return
    session.merge(
        _Status(
            point=status.point,
            repository_id=status.repository_id,
            uuid=status.uuid,
            at=at,
            status=json.dumps(schemas.dump(status)),
        )
    )


def _drop_removed(session: Session, repository_id: str, points: list[str]) -> None:
    """Take back what was just written of pruned points.

    Looked for after the write: who records the removal at the same time waits for us, or we see it.
    """
    session.flush()
    for id_ in points:
        if session.get(_Removed, (id_, repository_id)) is not None:
            _drop(session, repository_id, id_)


def _drop(session: Session, repository_id: str, point: str) -> None:
    for row in (
        session.get(_Point, (point, repository_id)),
        session.get(_Status, (point, repository_id)),
    ):
        if row is not None:
            session.delete(row)
