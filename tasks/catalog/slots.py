"""What became of the slots of policies, and where the schedule stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, aliased

from tasks.catalog.database import CHUNK, Database
from tasks.catalog.tables import RunRow, ScheduleRow, SlotRow
from virtvault.models import SlotRecord

__all__ = ["Slots"]

T = TypeVar("T", SlotRow, ScheduleRow)

# Of two records of one attempt the later state holds, whichever came first: a task that was sent
# stays sent, whoever thought meanwhile that no beat ran.
ORDER = ("missed", "skipped", "dispatched", "failed")
FIELDS = tuple(SlotRecord.__dataclass_fields__)
KEY = ("policy", "kind", "uuid", "slot", "attempt")
PLACE = ("policy", "kind", "uuid", "slot", "attempt", "state", "at", "task_id")


class Slots(Database):
    """The catalog's slots: a row for each attempt, and the newest of each schedule's entry."""

    def record_slots(self, records: Sequence[SlotRecord]) -> None:
        """Add what became of slots; an older record of an attempt never replaces a newer."""
        with self._writing() as session:
            for start in range(0, len(records), CHUNK):
                _put(session, records[start : start + CHUNK])

    def slots(self, since: str = "", domain: str = "", limit: int = 1000) -> list[SlotRecord]:
        """What became of slots since then, newest first, by their last attempts.

        :param domain: a uuid or a name.
        """
        later = aliased(SlotRow)
        superseded = (
            select(later.attempt)
            .where(
                later.policy == SlotRow.policy,
                later.kind == SlotRow.kind,
                later.uuid == SlotRow.uuid,
                later.slot == SlotRow.slot,
                later.attempt > SlotRow.attempt,
            )
            .exists()
        )
        query = select(SlotRow).where(~superseded).order_by(SlotRow.at.desc(), SlotRow.slot.desc())
        if since:
            query = query.where(SlotRow.at > since)
        if domain:
            query = query.where((SlotRow.uuid == domain) | (SlotRow.domain == domain))
        with self._reading() as session:
            return [
                SlotRecord(**{name: getattr(row, name) for name in FIELDS})
                for row in session.scalars(query.limit(limit))
            ]

    def schedule_state(self) -> dict[str, dict[str, Any]]:
        """The newest slot of each ``<policy>/<kind>/<uuid>``.

        Each is ``{"slot", "state", "attempt", "task_id", "at", "ended"}``; ``ended`` says whether
        the end of its task's run was recorded.
        """
        row = ScheduleRow
        query = select(
            row.policy,
            row.kind,
            row.uuid,
            row.slot,
            row.state,
            row.attempt,
            row.task_id,
            row.at,
            RunRow.state,
        ).outerjoin(RunRow, RunRow.task_id == row.task_id)
        with self._reading() as session:
            return {
                f"{policy}/{kind}/{uuid}": {
                    "slot": slot,
                    "state": state,
                    "attempt": attempt,
                    "task_id": task_id,
                    "at": at,
                    "ended": run is not None,
                }
                for policy, kind, uuid, slot, state, attempt, task_id, at, run in session.execute(
                    query
                )
            }


def _put(session: Session, records: Sequence[SlotRecord]) -> None:
    slots = {_key(row): row for row in session.scalars(_those(SlotRow, records, KEY))}
    schedule = {
        (row.policy, row.kind, row.uuid): row
        for row in session.scalars(_those(ScheduleRow, records, KEY[:3]))
    }
    for record in records:
        slot = slots.get(_key(record))
        if slot is None:
            slots[_key(record)] = slot = SlotRow(**_fields(record))
            session.add(slot)
        elif _order(record) > _order(slot):
            _take(slot, record, FIELDS)
        newest = schedule.get((record.policy, record.kind, record.uuid))
        taken = {name: getattr(record, name) for name in PLACE}
        if newest is None:
            newest = ScheduleRow(**taken)
            schedule[record.policy, record.kind, record.uuid] = newest
            session.add(newest)
        elif _place(record) > _place(newest):
            _take(newest, record, taken)
    session.flush()


def _those(table: type[T], records: Sequence[SlotRecord], key: Sequence[str]) -> Select[T]:
    """The rows that records are of, and perhaps some more.

    Column by column: a list of whole keys would be looked for in turn, through no index.
    """
    return select(table).where(
        *(getattr(table, name).in_({getattr(r, name) for r in records}) for name in key)
    )


def _key(slot: SlotRecord | SlotRow) -> tuple[str, str, str, str, int]:
    return (slot.policy, slot.kind, slot.uuid, slot.slot, slot.attempt)


def _fields(record: SlotRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in FIELDS}


def _take(row: SlotRow | ScheduleRow, record: SlotRecord, names: Any) -> None:
    for name in names:
        setattr(row, name, getattr(record, name))


def _order(slot: SlotRecord | SlotRow) -> tuple[Any, ...]:
    """Which of two records of one attempt holds: a total order, so that none depends on when."""
    return (ORDER.index(slot.state), slot.at, *(getattr(slot, name) for name in FIELDS))


def _place(slot: SlotRecord | ScheduleRow) -> tuple[Any, ...]:
    """Which of two records of one entry of the schedule is the newer."""
    return (slot.slot, slot.attempt, ORDER.index(slot.state), slot.at, slot.task_id)
