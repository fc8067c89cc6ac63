"""The central index of all points and runs, in any SQL database SQLAlchemy speaks to.

The manifests are the truth; this can be filled again from them.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import String, Text, create_engine, event, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from virtvault import schemas
from virtvault.models import Point

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

    def record_point(self, point: Point) -> None:
        """Add or replace a point: a record that comes twice or late is harmless."""
        row = _Point(
            id=point.id,
            repository_id=point.repository_id,
            uuid=point.uuid,
            domain=point.domain,
            host=point.host,
            instant=point.instant,
            manifest=json.dumps(schemas.dump(point)),
        )
        with Session(self._engine) as session, session.begin():
            session.merge(row)

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

    def runs(self) -> list[dict[str, Any]]:
        """All runs' ends, oldest first."""
        with Session(self._engine) as session:
            rows = session.scalars(select(_Run).order_by(_Run.started))
            return [{c.name: getattr(row, c.name) for c in _Run.__table__.columns} for row in rows]
