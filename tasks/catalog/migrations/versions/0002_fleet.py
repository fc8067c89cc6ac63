"""The central tier: hosts, domains, repositories, disks, slots, policies, alerts, notices.

Points and runs get columns for what was in their JSON alone. Rows that cannot be read keep the
columns empty; nothing is dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

# Rows read at a time.
PAGE = 1000
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def text(name: str, **more: Any) -> sa.Column[str]:
    return sa.Column(name, sa.String, nullable=False, **more)


def number(name: str, **more: Any) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, **more)


def upgrade() -> None:
    _of_points()
    _of_hosts()
    _of_runs()
    _of_policies()
    _of_alerts()
    _fill()


def _of_points() -> None:
    for name in ("repository", "started", "finished"):
        op.add_column("points", text(name, server_default=""))
    for name in ("stored", "transferred"):
        op.add_column("points", number(name, server_default="0"))
    op.create_table(
        "point_disks",
        text("point", primary_key=True),
        text("repository_id", primary_key=True),
        text("target", primary_key=True),
        *(text(name) for name in ("sync", "parent")),
        *(number(name) for name in ("stored", "transferred", "virtual_size")),
    )
    op.create_table(
        "newest",
        text("uuid", primary_key=True),
        text("repository_id", primary_key=True),
        *(text(name) for name in ("repository", "domain", "host", "point", "instant")),
        *(number(name) for name in ("chain", "points", "stored")),
    )
    op.create_index("ix_newest_domain", "newest", ["domain"])


def _of_hosts() -> None:
    op.create_table(
        "hosts",
        text("host", primary_key=True),
        *(text(name) for name in ("at", "listed", "default")),
        sa.Column("trouble", sa.Text, nullable=False),
        sa.Column("versions", sa.JSON, nullable=False),
    )
    op.create_table(
        "repositories",
        *(text(name, primary_key=True) for name in ("host", "name")),
        *(text(name) for name in ("id", "type")),
        *(number(name) for name in ("free", "size")),
        sa.Column("why", sa.Text, nullable=False),
        text("at"),
    )
    op.create_index("ix_repositories_id", "repositories", ["id"])
    op.create_table(
        "domains",
        *(text(name, primary_key=True) for name in ("uuid", "host")),
        *(text(name) for name in ("name", "state", "at")),
        number("disks"),
        sa.Column("targets", sa.JSON, nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("transient", sa.Boolean, nullable=False),
        text("active"),
    )
    op.create_index("ix_domains_host", "domains", ["host"])
    op.create_index("ix_domains_name", "domains", ["name"])


def _of_runs() -> None:
    for name in ("kind", "domain", "uuid", "repository", "point", "sync"):
        op.add_column("runs", text(name, server_default=""))
    op.add_column("runs", sa.Column("seconds", sa.Double, nullable=False, server_default="0"))
    for name in ("transferred", "stored"):
        op.add_column("runs", number(name, server_default="0"))
    op.create_index("ix_runs_finished", "runs", ["finished"])
    op.create_index("ix_runs_domain", "runs", ["domain"])
    op.create_index("ix_runs_newest", "runs", ["kind", "uuid", "finished"])
    op.create_index("ix_runs_uuid", "runs", ["uuid", "finished"])
    op.create_table(
        "callbacks",
        text("task_id", primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        text("at"),
    )
    op.create_index("ix_callbacks_at", "callbacks", ["at"])


def _of_policies() -> None:
    op.create_table(
        "policy_versions",
        number("number", primary_key=True, autoincrement=False),
        *(text(name) for name in ("applied", "by")),
        sa.Column("comment", sa.Text, nullable=False),
        number("policies"),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
        text("digest"),
    )
    op.create_table(
        "slots",
        *(text(name, primary_key=True) for name in ("policy", "kind", "uuid", "slot")),
        number("attempt", primary_key=True, autoincrement=False),
        *(text(name) for name in ("state", "at", "task_id", "host", "domain", "repository")),
        sa.Column("reason", sa.Text, nullable=False),
    )
    for name in ("at", "task_id", "domain"):
        op.create_index(f"ix_slots_{name}", "slots", [name])
    op.create_index("ix_slots_uuid", "slots", ["uuid", "at"])
    op.create_table(
        "schedule",
        *(text(name, primary_key=True) for name in ("policy", "kind", "uuid")),
        text("slot"),
        number("attempt"),
        *(text(name) for name in ("state", "at", "task_id")),
    )
    failed = sa.text("state = 'failed'")
    op.create_index(
        "ix_schedule_failed", "schedule", ["policy"], postgresql_where=failed, sqlite_where=failed
    )


def _of_alerts() -> None:
    op.create_table(
        "alerts",
        *(text(name, primary_key=True) for name in ("kind", "subject", "opened")),
        *(text(name) for name in ("closed", "told")),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("mend", sa.Text, nullable=False),
        *(text(name) for name in ("domain", "uuid", "host", "policy")),
    )
    op.create_index("ix_alerts_closed", "alerts", ["closed"])
    op.create_table(
        "notices",
        text("id", primary_key=True),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        *(text(name) for name in ("at", "state", "due")),
        number("tries"),
        sa.Column("error", sa.Text, nullable=False),
    )
    waiting = sa.text("state = 'waiting'")
    op.create_index(
        "ix_notices_waiting", "notices", ["due"], postgresql_where=waiting, sqlite_where=waiting
    )


# -- what is there already ------------------------------------------------------------------------


def _fill() -> None:
    bind = op.get_bind()
    metadata = sa.MetaData()
    points, disks, runs = (
        sa.Table(name, metadata, autoload_with=bind) for name in ("points", "point_disks", "runs")
    )
    for row in _pages(bind, runs, ["task_id"]):
        bind.execute(sa.update(runs).where(runs.c.task_id == row.task_id).values(**_of_run(row)))
    for row in _pages(bind, points, ["id", "repository_id"]):
        manifest = _json(row.manifest)
        of_disks = [_of_disk(row, disk) for disk in manifest.get("disks", ())]
        sums = {name: sum(d[name] for d in of_disks) for name in ("stored", "transferred")}
        named = {name: manifest.get(name, "") for name in ("repository", "started", "finished")}
        bind.execute(
            sa.update(points)
            .where(points.c.id == row.id, points.c.repository_id == row.repository_id)
            .values(**named, **sums)
        )
        if of_disks:
            bind.execute(sa.insert(disks), of_disks)
        # The run that made the point: its request named the domain in any of three ways.
        syncs = {disk["sync"] for disk in of_disks}
        bind.execute(
            sa.update(runs)
            .where(runs.c.task_id == manifest.get("task_id", ""), runs.c.kind == "backup")
            .values(
                **sums,
                repository=named["repository"],
                domain=row.domain,
                uuid=row.uuid,
                point=row.id,
                sync="mixed" if len(syncs) > 1 else "".join(syncs),
            )
        )
    _name(bind, points, runs)


def _name(bind: sa.Connection, points: sa.Table, runs: sa.Table) -> None:
    """Name and uuid of the domains of runs that made no point, as their points tell them."""
    named = sa.select(points.c.domain, points.c.uuid, points.c.host).distinct()
    for name, uuid, host in bind.execute(named).all():
        bind.execute(sa.update(runs).where(runs.c.domain == uuid).values(domain=name, uuid=uuid))
        bind.execute(
            sa.update(runs)
            .where(runs.c.domain == name, runs.c.host == host, runs.c.uuid == "")
            .values(uuid=uuid)
        )


def _of_run(row: Any) -> dict[str, Any]:
    request = _json(row.request)
    points = [request["point"]] if request.get("point") else request.get("points") or []
    domain = str(request.get("domain") or "").rpartition("/")[2]
    return {
        "kind": row.task.removeprefix("virtvault."),
        "domain": domain,
        "uuid": domain if UUID.fullmatch(domain) else "",
        "repository": request.get("repository") or "",
        "point": points[0] if len(points) == 1 else "",
        "seconds": _seconds(row.started, row.finished),
    }


def _of_disk(row: Any, disk: dict[str, Any]) -> dict[str, Any]:
    return {
        "point": row.id,
        "repository_id": row.repository_id,
        "target": disk.get("target", ""),
        **{name: disk.get(name, "") for name in ("sync", "parent")},
        **{name: int(disk.get(name, 0)) for name in ("stored", "transferred", "virtual_size")},
    }


def _pages(bind: sa.Connection, table: sa.Table, key: list[str]) -> Iterator[Any]:
    """All rows, a page at a time, by their key."""
    columns = [table.c[name] for name in key]
    last: tuple[Any, ...] = ()
    while True:
        query = sa.select(table).order_by(*columns).limit(PAGE)
        if last:
            query = query.where(sa.tuple_(*columns) > sa.tuple_(*last))
        rows = bind.execute(query).all()
        yield from rows
        if len(rows) < PAGE:
            return
        last = tuple(getattr(rows[-1], name) for name in key)


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(started: str, finished: str) -> float:
    try:
        took = datetime.fromisoformat(finished) - datetime.fromisoformat(started)
    except (ValueError, TypeError):
        return 0.0
    return max(0.0, took.total_seconds())
