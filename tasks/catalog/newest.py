"""What each domain has in each repository, kept up as its points change.

It is derived from the rows of that domain in that repository alone, all of them each time: in
whatever order they came, it is the same. A question about the fleet then reads one row a domain.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from tasks.catalog.tables import NewestRow, PointDiskRow, PointRow, StatusRow

__all__ = ["Newest", "chain_of", "derive", "derive_all"]


@dataclass(frozen=True)
class Newest:
    """The newest good point of a domain in a repository, and what there is in all.

    Good is a point that nothing bad is known of. ``chain`` counts the points that its restore
    needs. ``point``, ``instant`` and ``host`` are empty and ``chain`` 0 where none is good.
    ``points`` and ``stored`` (bytes) count all.
    """

    uuid: str
    domain: str
    repository_id: str
    repository: str
    point: str
    instant: str
    chain: int
    points: int
    stored: int
    host: str


def chain_of(point: str, parents: Mapping[str, Set[str]]) -> set[str]:
    """The points that a restore of ``point`` needs, itself among them."""
    found: set[str] = set()
    ahead = {point}
    while ahead:
        found |= ahead
        ahead = {parent for id_ in ahead for parent in parents.get(id_, ())} - found
    return found


def derive(session: Session, changed: Iterable[tuple[str, str]]) -> None:
    """Make the rows of these (domain uuid, repository id) anew."""
    session.flush()
    for uuid, repository_id in set(changed):
        row = _row(session, uuid, repository_id)
        if row is not None:
            session.merge(row)
        else:
            session.execute(
                delete(NewestRow).where(
                    NewestRow.uuid == uuid, NewestRow.repository_id == repository_id
                )
            )


def derive_all(session: Session) -> None:
    """Make all rows anew."""
    session.execute(delete(NewestRow))
    keys = session.execute(select(PointRow.uuid, PointRow.repository_id).distinct()).all()
    derive(session, [(uuid, repository_id) for uuid, repository_id in keys])
    session.flush()


def _row(session: Session, uuid: str, repository_id: str) -> NewestRow | None:
    columns = (PointRow.id, PointRow.instant, PointRow.stored)
    here = (PointRow.uuid == uuid, PointRow.repository_id == repository_id)
    points = session.execute(select(*columns).where(*here)).all()
    if not points:
        return None
    told = select(StatusRow.point, StatusRow.status).where(
        StatusRow.uuid == uuid, StatusRow.repository_id == repository_id
    )
    bad = {id_ for id_, text in session.execute(told) if json.loads(text)["state"] != "ok"}
    good = max(((p.instant, p.id) for p in points if p.id not in bad), default=None)
    # Domains change names: the newest point has the last that is known.
    last = session.scalars(
        select(PointRow).where(*here).order_by(PointRow.instant.desc(), PointRow.id.desc()).limit(1)
    ).one()
    row = NewestRow(
        uuid=uuid,
        repository_id=repository_id,
        repository=last.repository,
        domain=last.domain,
        host="",
        point="",
        instant="",
        chain=0,
        points=len(points),
        stored=sum(p.stored for p in points),
    )
    if good is not None:
        row.instant, row.point = good
        row.host = session.scalars(
            select(PointRow.host).where(*here, PointRow.id == row.point)
        ).one()
        row.chain = len(chain_of(row.point, _parents(session, uuid, repository_id)))
    return row


def _parents(session: Session, uuid: str, repository_id: str) -> dict[str, set[str]]:
    """The points that each point of the domain stands on directly."""
    found: dict[str, set[str]] = {}
    links = (
        select(PointDiskRow.point, PointDiskRow.parent)
        .join(
            PointRow,
            (PointRow.id == PointDiskRow.point)
            & (PointRow.repository_id == PointDiskRow.repository_id),
        )
        .where(
            PointRow.uuid == uuid,
            PointRow.repository_id == repository_id,
            PointDiskRow.parent != "",
        )
    )
    for point, parent in session.execute(links):
        found.setdefault(point, set()).add(parent)
    return found
