"""What is to be told to somebody outside, kept until it has been: an outbox.

A notice is added in the transaction that gives the reason for it, so there is neither one without
the other; who sends them says how it went.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tasks.catalog.database import Database
from tasks.catalog.tables import NoticeRow

__all__ = ["NewNotice", "Notice", "Notices", "put_notice"]


@dataclass(frozen=True)
class NewNotice:
    """A notice to be added: ``id`` makes it one of its kind, ``target`` says where it goes."""

    id: str
    target: str
    payload: dict[str, Any]


@dataclass(frozen=True)
class Notice:
    """A notice that waits since ``at``, after ``tries`` that failed, the last with ``error``."""

    id: str
    target: str
    payload: dict[str, Any]
    at: str
    tries: int = 0
    error: str = ""


class Notices(Database):
    """The catalog's outbox."""

    def add_notice(self, id_: str, target: str, payload: dict[str, Any], at: str) -> bool:
        """Add a notice, due at once; False, and nothing, where its id was added before."""
        with self._writing() as session:
            return put_notice(session, id_, target, payload, at)

    def due_notices(self, now: str, limit: int = 100) -> list[Notice]:
        """Those that are to be sent now, the longest due first."""
        query = (
            select(NoticeRow)
            .where(NoticeRow.state == "waiting", NoticeRow.due <= now)
            .order_by(NoticeRow.due, NoticeRow.id)
            .limit(limit)
        )
        with self._reading() as session:
            return [
                Notice(row.id, row.target, row.payload, row.at, row.tries, row.error)
                for row in session.scalars(query)
            ]

    def notice_sent(self, id_: str, at: str) -> None:
        """It was taken: it is not due again."""
        with self._writing() as session:
            row = session.get(NoticeRow, id_)
            if row is not None:
                row.state, row.due, row.error = "sent", at, ""

    def notice_failed(self, id_: str, error: str, next_at: str, give_up: bool = False) -> None:
        """It was not taken: due again at ``next_at``, or never."""
        with self._writing() as session:
            row = session.get(NoticeRow, id_)
            if row is not None and row.state == "waiting":
                row.state = "given up" if give_up else "waiting"
                row.due, row.error, row.tries = next_at, error, row.tries + 1


def put_notice(session: Session, id_: str, target: str, payload: dict[str, Any], at: str) -> bool:
    """Add a notice in the caller's transaction; False where its id was added before."""
    if session.get(NoticeRow, id_) is not None:
        return False
    session.add(
        NoticeRow(
            id=id_,
            target=target,
            payload=payload,
            at=at,
            state="waiting",
            due=at,
            tries=0,
            error="",
        )
    )
    session.flush()
    return True
