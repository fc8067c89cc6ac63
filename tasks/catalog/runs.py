"""Ends of runs, and who has asked to be told of one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from tasks.catalog.database import Database
from tasks.catalog.notices import put_notice
from tasks.catalog.tables import CallbackRow, DomainRow, NewestRow, PointRow, RunRow, SlotRow
from virtvault import schemas
from virtvault.models import RunInfo
from virtvault.moments import now
from virtvault.stored import UUID

__all__ = ["Runs"]

FIELDS = tuple(RunInfo.__dataclass_fields__)


class Runs(Database):
    """The catalog's runs."""

    def record_run(self, run: dict[str, Any]) -> None:
        """Add or replace a run's end, as :meth:`tasks.spool.Spool.run` tells it.

        A failure never replaces a success of the same task, nor an end that was later. Who has
        asked to be told has a notice of it once this is committed.
        """
        with self._writing() as session:
            row = _row(session, run)
            before = session.get(RunRow, row.task_id)
            if before is not None and _rank(before) >= _rank(row):
                return
            row = session.merge(row)
            session.flush()
            callback = session.get(CallbackRow, row.task_id)
            if callback is not None:
                _call_back(session, callback, row.finished)

    def runs(
        self, since: str = "", domain: str = "", policy: str = "", limit: int = 1000
    ) -> list[RunInfo]:
        """Runs that ended after ``since``, newest first; ``domain`` is a uuid or a name."""
        query = _infos().order_by(RunRow.finished.desc(), RunRow.task_id).limit(limit)
        if since:
            query = query.where(RunRow.finished > since)
        if domain:
            query = query.where((RunRow.uuid == domain) | (RunRow.domain == domain))
        if policy:
            query = query.where(SlotRow.policy == policy)
        with self._reading() as session:
            return [_info(row) for row in session.execute(query)]

    def run(self, task_id: str) -> RunInfo | None:
        """One run's end."""
        with self._reading() as session:
            row = session.execute(_infos().where(RunRow.task_id == task_id)).first()
            return None if row is None else _info(row)

    def request(self, task_id: str) -> dict[str, Any] | None:
        """What a run that ended was asked, as its hypervisor was; None where none is known."""
        with self._reading() as session:
            row = session.get(RunRow, task_id)
            found: dict[str, Any] | None = None if row is None else json.loads(row.request)
            return found

    def last_runs(self, kind: str = "backup") -> dict[str, RunInfo]:
        """The newest run of each domain that has ended, by the domain's uuid."""
        # From one uuid to the next through the index: never through a domain's whole history.
        first = select(func.min(RunRow.uuid).label("uuid")).where(
            RunRow.kind == kind, RunRow.uuid != ""
        )
        uuids = first.cte("uuids", recursive=True)
        following = (
            select(func.min(RunRow.uuid))
            .where(RunRow.kind == kind, RunRow.uuid > uuids.c.uuid)
            .scalar_subquery()
        )
        uuids = uuids.union_all(select(following).where(uuids.c.uuid.is_not(None)))
        newest = (
            select(RunRow.task_id)
            .where(RunRow.kind == kind, RunRow.uuid == uuids.c.uuid)
            .order_by(RunRow.finished.desc(), RunRow.task_id)
            .limit(1)
            .correlate(uuids)
            .scalar_subquery()
        )
        wanted = select(newest.label("task_id")).where(uuids.c.uuid.is_not(None)).subquery()
        query = _infos().join(wanted, wanted.c.task_id == RunRow.task_id)
        with self._reading() as session:
            return {row.uuid: _info(row) for row in session.execute(query)}

    def add_callback(self, task_id: str, url: str, at: str = "") -> None:
        """Tell ``url`` of the end of a task, also where that was recorded already.

        :param at: UTC, empty: now.
        """
        at = at or now()
        with self._writing() as session:
            callback = session.merge(CallbackRow(task_id=task_id, url=url, at=at))
            if session.get(RunRow, task_id) is not None:
                _call_back(session, callback, at)


def _row(session: Session, run: dict[str, Any]) -> RunRow:
    """A row of what was told; workers of before told less, so what can be found is looked up."""
    request = run["request"]
    points = [request["point"]] if request.get("point") else request.get("points") or []
    facts: dict[str, Any] = {
        "kind": run["task"].removeprefix("virtvault."),
        "domain": "",
        "uuid": "",
        "repository": request.get("repository") or "",
        "point": points[0] if len(points) == 1 else "",
        "sync": "boot" if request.get("boot") else "",
        "transferred": 0,
        "stored": 0,
    }
    facts.update({name: run[name] for name in facts if run.get(name)})
    if not facts["uuid"]:
        facts.update(_domain_of(session, run, facts))
    return RunRow(
        task_id=run["task_id"],
        task=run["task"],
        host=run["host"],
        state=run["state"],
        started=run["started"],
        finished=run["finished"],
        request=json.dumps(request),
        error=run["error"],
        mend=run["mend"],
        seconds=_seconds(run["started"], run["finished"]),
        **facts,
    )


def _domain_of(session: Session, run: dict[str, Any], facts: dict[str, Any]) -> dict[str, str]:
    """The domain that a request means, as far as the catalog can tell."""
    wanted = str(facts["domain"] or run["request"].get("domain") or "").rpartition("/")[2]
    domains = select(DomainRow.name, DomainRow.uuid)
    points = select(NewestRow.domain, NewestRow.uuid)
    for query in (
        select(PointRow.domain, PointRow.uuid).where(PointRow.id == facts["point"]),
        domains.where(DomainRow.uuid == wanted).order_by(DomainRow.at.desc()),
        points.where(NewestRow.uuid == wanted),
        domains.where(DomainRow.name == wanted, DomainRow.host == run["host"]),
        points.where(NewestRow.domain == wanted, NewestRow.host == run["host"]),
    ):
        found = session.execute(query).first()
        if found is not None:
            return {"domain": found[0], "uuid": found[1]}
    return {"domain": wanted, "uuid": wanted if UUID.fullmatch(wanted) else ""}


def _rank(row: RunRow) -> tuple[bool, str, str]:
    return (row.state == "complete", row.finished, row.state)


def _call_back(session: Session, callback: CallbackRow, at: str) -> None:
    row = session.execute(_infos().where(RunRow.task_id == callback.task_id)).first()
    assert row is not None
    info = _info(row)
    put_notice(
        session, f"callback-{info.task_id}-{info.state}", callback.url, schemas.dump(info), at
    )


def _infos() -> Select[Any]:
    """Runs, each with the policy and the slot that its task filled, as :func:`_info` takes them."""
    columns = [getattr(SlotRow if name in ("policy", "slot") else RunRow, name) for name in FIELDS]
    filled = (SlotRow.task_id == RunRow.task_id) & SlotRow.state.in_(("dispatched", "failed"))
    return select(*columns).select_from(RunRow).outerjoin(SlotRow, filled)


def _info(row: Iterable[Any]) -> RunInfo:
    named = dict(zip(FIELDS, row, strict=True))
    return RunInfo(**{**named, "policy": named["policy"] or "", "slot": named["slot"] or ""})


def _seconds(started: str, finished: str) -> float:
    try:
        return max(
            0.0,
            (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds(),
        )
    except ValueError:
        return 0.0
