"""What the watch over the fleet reads and writes: failed slots, and many alerts at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from sqlalchemy import func, select

from tasks.catalog.alerts import Alerts
from tasks.catalog.database import CHUNK
from tasks.catalog.notices import NewNotice, put_notice
from tasks.catalog.tables import (
    AlertRow,
    DomainRow,
    HostRow,
    RepositoryRow,
    RunRow,
    ScheduleRow,
    SlotRow,
)
from virtvault.models import Alert, HostInfo, RepositoryInfo, SlotRecord

__all__ = ["Watching"]


class Watching(Alerts):
    """The catalog as the watch uses it."""

    def open_alerts(self) -> list[tuple[Alert, str]]:
        """Those that are open, each with when it was told last; empty: not yet."""
        names = tuple(Alert.__dataclass_fields__)
        with self._reading() as session:
            rows = session.scalars(select(AlertRow).where(AlertRow.closed == ""))
            return [(Alert(**{n: getattr(row, n) for n in names}), row.told) for row in rows]

    def change_alerts(
        self,
        at: str,
        opened: Sequence[Alert],
        closed: Sequence[Alert],
        told: Iterable[Alert],
        notices: Sequence[NewNotice],
    ) -> None:
        """All of one look at the fleet in one transaction: none of it is there without the rest.

        Who opens what is open already, or closes what is closed, changes nothing.

        :param told: those of which ``notices`` tell, at ``at``.
        """
        with self._writing() as session:
            rows = {
                (row.kind, row.subject): row
                for row in session.scalars(select(AlertRow).where(AlertRow.closed == ""))
            }
            for alert in opened:
                key = (alert.kind, alert.subject)
                known = session.get(AlertRow, (*key, alert.opened))
                if key not in rows and known is None:
                    rows[key] = AlertRow(**asdict(alert), told="")
                    session.add(rows[key])
            for alert in told:
                if row := rows.get((alert.kind, alert.subject)):
                    row.told, row.detail, row.mend = at, alert.detail, alert.mend
            for alert in closed:
                if row := rows.get((alert.kind, alert.subject)):
                    row.closed = max(at, row.opened)
            for notice in notices:
                put_notice(session, notice.id, notice.target, notice.payload, at)

    def failing(self) -> list[tuple[SlotRecord, str, str]]:
        """The entries of the schedule whose newest slot failed in the end.

        Each with its run's error and mend, empty where no run of it was recorded.
        """
        newest = (
            (SlotRow.policy == ScheduleRow.policy)
            & (SlotRow.kind == ScheduleRow.kind)
            & (SlotRow.uuid == ScheduleRow.uuid)
            & (SlotRow.slot == ScheduleRow.slot)
            & (SlotRow.attempt == ScheduleRow.attempt)
        )
        query = (
            select(SlotRow, RunRow.error, RunRow.mend)
            .select_from(ScheduleRow)
            .join(SlotRow, newest)
            .outerjoin(RunRow, (RunRow.task_id == SlotRow.task_id) & (SlotRow.task_id != ""))
            .where(ScheduleRow.state == "failed")
        )
        names = tuple(SlotRecord.__dataclass_fields__)
        with self._reading() as session:
            return [
                (SlotRecord(**{n: getattr(row, n) for n in names}), error or "", mend or "")
                for row, error, mend in session.execute(query)
            ]

    def settled(self) -> set[str]:
        """The subjects of open alerts of failed slots whose entry has succeeded since."""
        query = (
            select(SlotRow.policy, SlotRow.kind, SlotRow.uuid)
            .join(AlertRow, (AlertRow.policy == SlotRow.policy) & (AlertRow.uuid == SlotRow.uuid))
            .join(RunRow, RunRow.task_id == SlotRow.task_id)
            .where(AlertRow.kind == "failed", AlertRow.closed == "", SlotRow.task_id != "")
            .where(SlotRow.at > AlertRow.opened, RunRow.state == "complete")
            .distinct()
        )
        with self._reading() as session:
            return {f"{policy}/{kind}/{uuid}" for policy, kind, uuid in session.execute(query)}

    def hypervisors(self) -> list[HostInfo]:
        """Each as its newest inventory says, none of them alive: that is not known here."""
        current = (DomainRow.host == HostRow.host) & (DomainRow.at >= HostRow.listed)
        counted = select(HostRow.host, func.count()).join(DomainRow, current).group_by(HostRow.host)
        with self._reading() as session:
            hosts = session.scalars(select(HostRow).order_by(HostRow.host)).all()
            counts = {row[0]: row[1] for row in session.execute(counted)}
            rooms: dict[str, list[RepositoryInfo]] = {}
            for row in session.scalars(select(RepositoryRow).order_by(RepositoryRow.name)):
                room = RepositoryInfo(row.name, row.id, row.type, row.free, row.size, row.why)
                rooms.setdefault(row.host, []).append(room)
        return [
            HostInfo(
                host=row.host,
                alive=False,
                seen=row.at,
                libvirt=row.versions.get("libvirt", ""),
                qemu=row.versions.get("qemu", ""),
                domains=counts.get(row.host, 0),
                repositories=tuple(room.name for room in rooms.get(row.host, ())),
                storage=tuple(rooms.get(row.host, ())),
                trouble=row.trouble,
            )
            for row in hosts
        ]

    def default_repositories(self) -> dict[str, str]:
        """The repository that each hypervisor means where none is named."""
        with self._reading() as session:
            rows = session.execute(select(HostRow.host, HostRow.default))
            return {row.host: row.default for row in rows}

    def first_slots(self, uuids: Sequence[str]) -> dict[str, str]:
        """When the first slot of a backup of each of these domains came; none came of others."""
        found: dict[str, str] = {}
        with self._reading() as session:
            for start in range(0, len(uuids), CHUNK):
                query = (
                    select(SlotRow.uuid, func.min(SlotRow.at))
                    .where(SlotRow.uuid.in_(uuids[start : start + CHUNK]))
                    .where(SlotRow.kind == "backup")
                    .group_by(SlotRow.uuid)
                )
                found.update((uuid, at) for uuid, at in session.execute(query))
        return found
