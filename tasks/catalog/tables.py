"""The catalog's tables as this version has them; how older ones become them is in `migrations`.

Times are text, UTC to the millisecond: they sort as they are.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Double, Index, String, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["Base"]


class Base(DeclarativeBase):
    """What Alembic compares a database with."""

    type_annotation_map: ClassVar = {
        dict[str, Any]: JSON,
        list[Any]: JSON,
        int: BigInteger,
        float: Double,
    }


class PointRow(Base):
    """A manifest, and of it what is asked often; sizes are the sums of its disks."""

    __tablename__ = "points"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    repository_id: Mapped[str] = mapped_column(String(8), primary_key=True)
    uuid: Mapped[str] = mapped_column(String(36), index=True)
    domain: Mapped[str] = mapped_column(String(300), index=True)
    host: Mapped[str] = mapped_column(String(100))
    instant: Mapped[str] = mapped_column(String(30))
    manifest: Mapped[str] = mapped_column(Text)
    repository: Mapped[str] = mapped_column(String, server_default="")
    started: Mapped[str] = mapped_column(String, server_default="")
    finished: Mapped[str] = mapped_column(String, server_default="")
    stored: Mapped[int] = mapped_column(server_default="0")
    transferred: Mapped[int] = mapped_column(server_default="0")


class PointDiskRow(Base):
    __tablename__ = "point_disks"
    point: Mapped[str] = mapped_column(String, primary_key=True)
    repository_id: Mapped[str] = mapped_column(String, primary_key=True)
    target: Mapped[str] = mapped_column(String, primary_key=True)
    sync: Mapped[str] = mapped_column(String)
    parent: Mapped[str] = mapped_column(String)
    stored: Mapped[int]
    transferred: Mapped[int]
    virtual_size: Mapped[int]


class StatusRow(Base):
    """How a point was at ``at``: a point whose manifest cannot be read has only this."""

    __tablename__ = "statuses"
    point: Mapped[str] = mapped_column(String(40), primary_key=True)
    repository_id: Mapped[str] = mapped_column(String(8), primary_key=True)
    uuid: Mapped[str] = mapped_column(String(36), index=True)
    at: Mapped[str] = mapped_column(String(30))
    status: Mapped[str] = mapped_column(Text)


class RemovedRow(Base):
    """A point that was pruned: whoever still asks for it is told, and no late record revives it."""

    __tablename__ = "removed"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    repository_id: Mapped[str] = mapped_column(String(8), primary_key=True)
    at: Mapped[str] = mapped_column(String(30))


class NewestRow(Base):
    """What a domain has in a repository: derived, made anew whenever its points change.

    ``point``, ``instant``, ``host`` and ``chain`` are those of the newest good one, empty and 0
    where none is good; ``points`` and ``stored`` count all.
    """

    __tablename__ = "newest"
    uuid: Mapped[str] = mapped_column(String, primary_key=True)
    repository_id: Mapped[str] = mapped_column(String, primary_key=True)
    repository: Mapped[str] = mapped_column(String)
    domain: Mapped[str] = mapped_column(String, index=True)
    host: Mapped[str] = mapped_column(String)
    point: Mapped[str] = mapped_column(String)
    instant: Mapped[str] = mapped_column(String)
    chain: Mapped[int]
    points: Mapped[int]
    stored: Mapped[int]


class HostRow(Base):
    """A hypervisor's newest inventory, ``at``; ``listed`` is the newest that libvirt answered."""

    __tablename__ = "hosts"
    host: Mapped[str] = mapped_column(String, primary_key=True)
    at: Mapped[str] = mapped_column(String)
    listed: Mapped[str] = mapped_column(String)
    default: Mapped[str] = mapped_column(String)
    trouble: Mapped[str] = mapped_column(Text)
    versions: Mapped[dict[str, Any]]


class RepositoryRow(Base):
    """A repository as one hypervisor sees it."""

    __tablename__ = "repositories"
    host: Mapped[str] = mapped_column(String, primary_key=True)
    name: Mapped[str] = mapped_column(String, primary_key=True)
    id: Mapped[str] = mapped_column(String, index=True)
    type: Mapped[str] = mapped_column(String)
    free: Mapped[int]
    size: Mapped[int]
    why: Mapped[str] = mapped_column(Text)
    at: Mapped[str] = mapped_column(String)


class DomainRow(Base):
    """A domain as one hypervisor listed it last, ``at``: absent there where that is no longer the
    hypervisor's newest list."""

    __tablename__ = "domains"
    uuid: Mapped[str] = mapped_column(String, primary_key=True)
    host: Mapped[str] = mapped_column(String, primary_key=True, index=True)
    name: Mapped[str] = mapped_column(String, index=True)
    state: Mapped[str] = mapped_column(String)
    at: Mapped[str] = mapped_column(String)
    disks: Mapped[int]
    targets: Mapped[list[Any]]
    labels: Mapped[dict[str, Any]]
    transient: Mapped[bool]
    active: Mapped[str] = mapped_column(String)


class RunRow(Base):
    __tablename__ = "runs"
    task_id: Mapped[str] = mapped_column(String(100), primary_key=True)
    task: Mapped[str] = mapped_column(String(100))
    host: Mapped[str] = mapped_column(String(100))
    state: Mapped[str] = mapped_column(String(20))
    started: Mapped[str] = mapped_column(String(30))
    finished: Mapped[str] = mapped_column(String(30), index=True)
    request: Mapped[str] = mapped_column(Text)
    error: Mapped[str] = mapped_column(Text)
    mend: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(String, server_default="")
    domain: Mapped[str] = mapped_column(String, server_default="", index=True)
    uuid: Mapped[str] = mapped_column(String, server_default="")
    repository: Mapped[str] = mapped_column(String, server_default="")
    point: Mapped[str] = mapped_column(String, server_default="")
    sync: Mapped[str] = mapped_column(String, server_default="")
    seconds: Mapped[float] = mapped_column(server_default="0")
    transferred: Mapped[int] = mapped_column(server_default="0")
    stored: Mapped[int] = mapped_column(server_default="0")
    __table_args__ = (
        Index("ix_runs_newest", "kind", "uuid", "finished"),
        Index("ix_runs_uuid", "uuid", "finished"),
    )


class SlotRow(Base):
    """What became of one attempt at a slot."""

    __tablename__ = "slots"
    policy: Mapped[str] = mapped_column(String, primary_key=True)
    kind: Mapped[str] = mapped_column(String, primary_key=True)
    uuid: Mapped[str] = mapped_column(String, primary_key=True)
    slot: Mapped[str] = mapped_column(String, primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(String)
    at: Mapped[str] = mapped_column(String, index=True)
    task_id: Mapped[str] = mapped_column(String, index=True)
    host: Mapped[str] = mapped_column(String)
    domain: Mapped[str] = mapped_column(String, index=True)
    repository: Mapped[str] = mapped_column(String)
    reason: Mapped[str] = mapped_column(Text)
    __table_args__ = (Index("ix_slots_uuid", "uuid", "at"),)


class ScheduleRow(Base):
    """The newest slot of each entry of the schedule: what beat goes on from."""

    __tablename__ = "schedule"
    policy: Mapped[str] = mapped_column(String, primary_key=True)
    kind: Mapped[str] = mapped_column(String, primary_key=True)
    uuid: Mapped[str] = mapped_column(String, primary_key=True)
    slot: Mapped[str] = mapped_column(String)
    attempt: Mapped[int]
    state: Mapped[str] = mapped_column(String)
    at: Mapped[str] = mapped_column(String)
    task_id: Mapped[str] = mapped_column(String)
    __table_args__ = (
        Index(
            "ix_schedule_failed",
            "policy",
            postgresql_where=text("state = 'failed'"),
            sqlite_where=text("state = 'failed'"),
        ),
    )


class PolicyVersionRow(Base):
    __tablename__ = "policy_versions"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    applied: Mapped[str] = mapped_column(String)
    by: Mapped[str] = mapped_column(String)
    comment: Mapped[str] = mapped_column(Text)
    policies: Mapped[int]
    text: Mapped[str] = mapped_column(Text)
    document: Mapped[dict[str, Any]]
    digest: Mapped[str] = mapped_column(String)


class AlertRow(Base):
    """An alert, open while ``closed`` is empty; ``told`` is when it was told last."""

    __tablename__ = "alerts"
    kind: Mapped[str] = mapped_column(String, primary_key=True)
    subject: Mapped[str] = mapped_column(String, primary_key=True)
    opened: Mapped[str] = mapped_column(String, primary_key=True)
    closed: Mapped[str] = mapped_column(String, index=True)
    told: Mapped[str] = mapped_column(String)
    detail: Mapped[str] = mapped_column(Text)
    mend: Mapped[str] = mapped_column(Text)
    domain: Mapped[str] = mapped_column(String)
    uuid: Mapped[str] = mapped_column(String)
    host: Mapped[str] = mapped_column(String)
    policy: Mapped[str] = mapped_column(String)


class NoticeRow(Base):
    """Something to tell somebody outside: ``waiting`` until ``sent`` or ``given up``."""

    __tablename__ = "notices"
    id: Mapped[str] = mapped_column(String, primary_key=True)
    target: Mapped[str] = mapped_column(Text)
    payload: Mapped[dict[str, Any]]
    at: Mapped[str] = mapped_column(String)
    state: Mapped[str] = mapped_column(String)
    due: Mapped[str] = mapped_column(String)
    tries: Mapped[int]
    error: Mapped[str] = mapped_column(Text)
    __table_args__ = (
        Index(
            "ix_notices_waiting",
            "due",
            postgresql_where=text("state = 'waiting'"),
            sqlite_where=text("state = 'waiting'"),
        ),
    )


class CallbackRow(Base):
    """The URL that is told when a task has ended."""

    __tablename__ = "callbacks"
    task_id: Mapped[str] = mapped_column(String, primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    at: Mapped[str] = mapped_column(String, index=True)
