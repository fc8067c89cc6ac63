"""Alerts: what is wrong, from when until when, and when it was told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import select
from sqlalchemy.orm import Session

from tasks.catalog.notices import NewNotice, Notices, put_notice
from tasks.catalog.tables import AlertRow
from virtvault.models import Alert

__all__ = ["Alerts"]


class Alerts(Notices):
    """The catalog's alerts. One kind and subject has one open alert at a time."""

    def open_alert(self, alert: Alert, notices: Sequence[NewNotice] = ()) -> bool:
        """Add an alert and what is to be told of it, both or neither.

        False where one of that kind and subject is open, or was opened at that time before.
        """
        with self._writing() as session:
            if _open(session, alert.kind, alert.subject) is not None:
                return False
            if session.get(AlertRow, (alert.kind, alert.subject, alert.opened)) is not None:
                return False
            session.add(AlertRow(**asdict(alert), told=alert.opened))
            _put(session, notices, alert.opened)
            return True

    def close_alert(
        self, kind: str, subject: str, at: str, notices: Sequence[NewNotice] = ()
    ) -> Alert | None:
        """Close the open alert, with what is to be told of that; None where none is open."""
        with self._writing() as session:
            row = _open(session, kind, subject)
            if row is None:
                return None
            row.closed = max(at, row.opened)
            _put(session, notices, at)
            return _alert(row)

    def alerts(self, closed_since: str = "") -> list[Alert]:
        """Those that are open, and with ``closed_since`` those closed since then; newest first."""
        query = select(AlertRow).order_by(AlertRow.opened.desc(), AlertRow.kind, AlertRow.subject)
        wanted = AlertRow.closed == ""
        if closed_since:
            wanted = wanted | (AlertRow.closed > closed_since)
        with self._reading() as session:
            return [_alert(row) for row in session.scalars(query.where(wanted))]


def _open(session: Session, kind: str, subject: str) -> AlertRow | None:
    query = select(AlertRow).where(
        AlertRow.kind == kind, AlertRow.subject == subject, AlertRow.closed == ""
    )
    return session.scalars(query).first()


def _put(session: Session, notices: Sequence[NewNotice], at: str) -> None:
    for notice in notices:
        put_notice(session, notice.id, notice.target, notice.payload, at)


def _alert(row: AlertRow) -> Alert:
    return Alert(**{name: getattr(row, name) for name in Alert.__dataclass_fields__})
