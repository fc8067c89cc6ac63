"""Hypervisors, their repositories and domains, as their inventories say.

A row is what the newest inventory that names its subject says of it. So inventories may come
late, twice and in any order, and a domain that is no longer listed is known as it was last.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from tasks.catalog.database import CHUNK, Database
from tasks.catalog.tables import DomainRow, HostRow, NewestRow, RepositoryRow
from virtvault.models import DomainInfo, Inventory, RepositoryInfo
from virtvault.whereabouts import MIGRATING, SHUT_OFF

__all__ = ["Hosts"]

ABSENT = "absent"


class Hosts(Database):
    """The catalog's hypervisors and domains."""

    def record_inventory(self, inventory: Inventory) -> None:
        """What a hypervisor said of itself."""
        with self._writing() as session:
            host = session.get(HostRow, inventory.host)
            if host is None:
                host = HostRow(host=inventory.host, at="", listed="")
                session.add(host)
            if inventory.at > host.at:
                host.at, host.trouble = inventory.at, inventory.trouble
                host.default, host.versions = inventory.default, dict(inventory.versions)
                _put_repositories(session, inventory)
            if not inventory.trouble:
                host.listed = max(host.listed, inventory.at)
            _put_domains(session, inventory)

    def inventories(self) -> list[Inventory]:
        """The newest of each hypervisor, by name."""
        with self._reading() as session:
            hosts = session.scalars(select(HostRow).order_by(HostRow.host)).all()
            repositories = _by_host(
                session.scalars(select(RepositoryRow).order_by(RepositoryRow.name))
            )
            listed = _claims().where(DomainRow.at >= HostRow.listed).order_by(DomainRow.name)
            domains = _by_host(session.execute(listed))
        return [
            Inventory(
                host=row.host,
                at=row.at,
                versions=row.versions,
                repositories=tuple(_repository(r) for r in repositories.get(row.host, ())),
                domains=tuple(_domain(d, d.state) for d in domains.get(row.host, ())),
                default=row.default,
                trouble=row.trouble,
            )
            for row in hosts
        ]

    def domains(self) -> list[tuple[DomainInfo, str]]:
        """All domains that are or were, each once, with when it was listed last; by name.

        One that several hypervisors list is where it runs, else where it ran last, as
        :func:`virtvault.whereabouts.locate` has it, else where it was listed last.
        One that none lists any more is ``absent``, also one of which there are points alone.
        """
        with self._reading() as session:
            rows = session.execute(_claims()).all()
            stored = select(NewestRow.uuid, NewestRow.domain, NewestRow.host, NewestRow.instant)
            points = session.execute(stored.where(NewestRow.uuid.not_in(select(DomainRow.uuid))))
            return _sorted({**_from_points(points.all()), **_resolved(rows)})

    def domain(self, wanted: str) -> list[tuple[DomainInfo, str]]:
        """Those that a uuid, a name or ``host/name`` means; empty where none was ever known."""
        host, _, name = wanted.rpartition("/")
        named = (DomainRow.uuid == name) | (DomainRow.name == name)
        with self._reading() as session:
            uuids = list(session.scalars(select(DomainRow.uuid).where(named).distinct()))
            rows = session.execute(_claims().where(DomainRow.uuid.in_(uuids))).all()
            stored = select(NewestRow.uuid, NewestRow.domain, NewestRow.host, NewestRow.instant)
            of = stored.where((NewestRow.uuid == name) | (NewestRow.domain == name))
            points = session.execute(of.where(NewestRow.uuid.not_in(select(DomainRow.uuid)))).all()
        found = {**_from_points(points), **_resolved(rows)}
        return _sorted(
            {
                uuid: (info, seen)
                for uuid, (info, seen) in found.items()
                if name in (info.uuid, info.name) and host in ("", info.host)
            }
        )


def _put_repositories(session: Session, inventory: Inventory) -> None:
    session.execute(delete(RepositoryRow).where(RepositoryRow.host == inventory.host))
    for told in inventory.repositories:
        session.add(
            RepositoryRow(
                host=inventory.host,
                at=inventory.at,
                name=told.name,
                id=told.id,
                type=told.type,
                free=told.free,
                size=told.size,
                why=told.why,
            )
        )


def _put_domains(session: Session, inventory: Inventory) -> None:
    known = {}
    uuids = [domain.uuid for domain in inventory.domains]
    for start in range(0, len(uuids), CHUNK):
        there = select(DomainRow).where(
            DomainRow.host == inventory.host, DomainRow.uuid.in_(uuids[start : start + CHUNK])
        )
        known.update({row.uuid: row for row in session.scalars(there)})
    for told in inventory.domains:
        row = known.get(told.uuid)
        if row is None:
            row = known[told.uuid] = DomainRow(uuid=told.uuid, host=inventory.host, at="")
            session.add(row)
        if inventory.at > row.at:
            row.at, row.name, row.state = inventory.at, told.name, told.state
            row.disks, row.transient, row.active = told.disks, told.transient, told.active
            row.targets, row.labels = list(told.targets), dict(told.labels)


def _claims() -> Any:
    """Each hypervisor's row of each domain, with when that hypervisor last listed its domains."""
    # Plain rows: 50 000 objects of the ORM take as long as all else together.
    claims = select(DomainRow.__table__, HostRow.listed).select_from(DomainRow)
    return claims.join(HostRow, HostRow.host == DomainRow.host)


def _resolved(rows: Iterable[Any]) -> dict[str, tuple[DomainInfo, str]]:
    best: dict[str, tuple[tuple[Any, ...], Any]] = {}
    for row in rows:
        claim = _claim(row, row.at >= row.listed)
        if row.uuid not in best or claim > best[row.uuid][0]:
            best[row.uuid] = (claim, row)
    return {
        uuid: (_domain(row, row.state if claim[0] else ABSENT), row.at)
        for uuid, (claim, row) in best.items()
    }


def _claim(row: Any, there: bool) -> tuple[Any, ...]:
    """What a hypervisor's word for having the domain weighs: the greatest holds."""
    runs = there and row.state not in (SHUT_OFF, MIGRATING)
    moving = there and row.state == MIGRATING
    ran = row.at if runs else row.active if there else ""
    return (there, runs, moving, ran, row.at, row.host)


def _from_points(rows: Iterable[Any]) -> dict[str, tuple[DomainInfo, str]]:
    """Domains of which there are points alone."""
    found = {}
    for uuid, name, host, instant in sorted(rows, key=lambda row: row.instant):
        found[uuid] = (DomainInfo(name, uuid, host, ABSENT), instant)
    return found


def _sorted(found: dict[str, tuple[DomainInfo, str]]) -> list[tuple[DomainInfo, str]]:
    return sorted(found.values(), key=lambda item: (item[0].name, item[0].uuid))


def _domain(row: Any, state: str) -> DomainInfo:
    return DomainInfo(
        name=row.name,
        uuid=row.uuid,
        host=row.host,
        state=state,
        disks=row.disks,
        targets=tuple(row.targets),
        labels=row.labels,
        transient=row.transient,
        active=row.active,
    )


def _repository(row: RepositoryRow) -> RepositoryInfo:
    return RepositoryInfo(row.name, row.id, row.type, row.free, row.size, row.why)


def _by_host(rows: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(row.host, []).append(row)
    return found
