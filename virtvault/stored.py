"""What a client asks and says of stored points: catalog, states, protection, rebuild."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from virtvault import queues, schemas
from virtvault.connection import Connection
from virtvault.errors import (
    InvalidRequest,
    NotReachable,
    RepositoryUnusable,
    UnknownDomain,
    UnknownPoint,
    UnknownRepository,
    VirtvaultError,
)
from virtvault.models import Point, PointStatus

__all__ = ["Rebuilt", "RebuiltRepository", "StoredPoints", "Unreadable"]

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PROTECTED = "protected by hand"


@dataclass(frozen=True)
class Unreadable:
    """A point whose manifest cannot be used, and why, with its path."""

    point: str
    uuid: str
    why: str


@dataclass(frozen=True)
class RebuiltRepository:
    """One repository whose points the catalog now has as its manifests have them.

    ``states`` counts them by state. ``gone`` are those that the catalog had and the repository has
    not (any more).
    """

    name: str
    id: str
    host: str
    domains: int
    points: int
    states: dict[str, int]
    gone: tuple[str, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild of the catalog did.

    ``unread`` maps a repository (``HOST/NAME``, or the id of one that no living hypervisor has) to
    why it was not read: what the catalog has of it stays as it was.
    """

    repositories: tuple[RebuiltRepository, ...]
    unread: dict[str, str]


@dataclass(frozen=True)
class _Seen:
    """A repository as one living hypervisor sees it."""

    host: str
    name: str
    id: str
    domains: tuple[str, ...]
    why: str

    @property
    def where(self) -> str:
        return f"{self.host}/{self.name}"


class StoredPoints(Connection):
    """The points that there are, from the catalog, or from the repositories themselves."""

    def points(self, domain: str = "") -> list[Point]:
        """The points in the catalog, of one domain (name or uuid) or all, oldest first."""
        answer = self._question(queues.CENTRAL, queues.POINTS, domain)
        return [schemas.load(Point, item) for item in answer]

    def statuses(self, domain: str = "") -> list[PointStatus]:
        """How the points are, as the catalog was last told; those that cannot be read, too."""
        answer = self._question(queues.CENTRAL, queues.STATUSES, domain)
        return [schemas.load(PointStatus, item) for item in answer]

    def show(self, point: str) -> Point:
        """One point, from the catalog or else from a repository that has it.

        :raises UnknownPoint: neither does; or it was pruned, and when.
        :raises RepositoryUnusable: a repository has it, and its manifest cannot be used.
        """
        answer = self._question(queues.CENTRAL, queues.SHOW, point)
        if answer:
            return schemas.load(Point, answer)
        fate = self._question(queues.CENTRAL, queues.FATE, point)
        try:
            return self._find(point)[1]
        except (UnknownPoint, NotReachable) as error:
            if fate["removed"]:
                raise UnknownPoint(
                    f"Point {point} was pruned on {fate['removed']}.",
                    "`virtvault points` lists what is kept.",
                ) from None
            if fate["status"]:
                status = schemas.load(PointStatus, fate["status"])
                raise RepositoryUnusable(
                    f"Point {point} in repository {status.repository} is {status.state}: "
                    f"{status.why}",
                    "Restore its manifest, or use another point: `virtvault points` lists them.",
                ) from None
            raise error

    def status(self, point: str) -> PointStatus | None:
        """How one point is, as the catalog was last told; None where it was told nothing."""
        found = self._question(queues.CENTRAL, queues.FATE, point)["status"]
        return schemas.load(PointStatus, found) if found else None

    def protect(self, point: str, reason: str = "", *, host: str = "") -> PointStatus:
        """Keep a point whatever the rules say, durably, in its repository; gives how it is now.

        :param host: the hypervisor that writes. Default: one that has the repository.
        :raises BadInput: unknown point, or it is being pruned.
        :raises RepositoryUnusable: it cannot be written.
        """
        return self._protect(point, host, reason or PROTECTED)

    def unprotect(self, point: str, *, host: str = "") -> PointStatus:
        """Leave a point to the rules again; parameters and errors as in :meth:`protect`."""
        return self._protect(point, host, "")

    def rebuild(self, repository: str = "", domain: str = "") -> Rebuilt:
        """Make the catalog anew from the manifests: of all repositories, or of one (name or id).

        A repository that several hypervisors have is read once. What a repository that cannot be
        read had in the catalog stays. Each domain is replaced in one transaction, and what is
        recorded meanwhile stays too.

        :param domain: only that domain's points (name or uuid).
        :raises UnknownRepository: no living hypervisor has it.
        :raises NotReachable: no hypervisor, or no central worker, answers.
        """
        known: dict[str, dict[str, list[str]]] = self._question(queues.CENTRAL, queues.KNOWN)
        uuid = self.find_uuid(domain) if domain else ""
        everywhere, unread = self._seen()
        seen = [s for s in everywhere if repository in ("", s.name, s.id)]
        if repository:
            unread = {at: why for at, why in unread.items() if at.endswith(f"/{repository}")}
        if repository and not seen and not unread and repository not in known:
            raise _no_repository(repository, everywhere)
        done: dict[str, RebuiltRepository] = {}
        for one in seen:
            if one.id in done:
                continue
            try:
                done[one.id] = self._rebuild(one, known.get(one.id, {}), uuid)
            except VirtvaultError as error:
                # Another hypervisor may be able to. What was replaced so far is right already.
                unread[one.where] = f"{error.message} What was not read yet stays as it was."
        for id_, domains in known.items():
            listed = sum(len(ids) for each, ids in domains.items() if uuid in ("", each))
            away = id_ not in done and id_ not in {s.id for s in seen}
            if listed and away and repository in ("", id_):
                unread[id_] = f"No living hypervisor can read it; its {listed} points stay listed."
        return Rebuilt(tuple(done.values()), unread)

    def find_uuid(self, domain: str) -> str:
        """A domain's uuid: given so, or of one that there is, or of one that has points.

        :raises UnknownDomain: none, or several have that name.
        """
        if UUID.fullmatch(domain):
            return domain
        try:
            return self.find_domain(domain).uuid
        except (UnknownDomain, NotReachable):
            found = {point.uuid for point in self.points(domain)}
            if len(found) == 1:
                return found.pop()
            if found:
                raise UnknownDomain(
                    f"{len(found)} domains that are called {domain!r}, or were, have points.",
                    f"Name one by its uuid: {', '.join(sorted(found))}.",
                ) from None
            raise

    # -- inside -------------------------------------------------------------------------------

    def _rebuild(
        self, one: _Seen, known: dict[str, list[str]], uuid: str = ""
    ) -> RebuiltRepository:
        uuids = sorted({*one.domains, *known}) if not uuid else [uuid]
        states: dict[str, int] = {}
        gone: list[str] = []
        unreadable: list[Unreadable] = []
        points = domains = 0
        for each in uuids:
            page = self._ask(one.host, queues.SCAN, one.name, each)
            if page["repository_id"] != one.id:
                raise RepositoryUnusable(
                    f"{one.where} was repository {one.id} and is now {page['repository_id']}.",
                    "Rebuild again once it stays mounted.",
                )
            there = {status["point"] for status in page["statuses"]}
            missing = sorted(set(known.get(each, ())) - there)
            told = {key: page[key] for key in ("repository_id", "uuid", "at", "points", "statuses")}
            told |= {"gone": missing, "unreadable": list(page["unreadable"])}
            self._question(queues.CENTRAL, queues.REBUILD, told)
            gone += missing
            points += len(page["points"])
            domains += bool(there)
            for status in page["statuses"]:
                states[status["state"]] = states.get(status["state"], 0) + 1
            unreadable += [Unreadable(id_, each, why) for id_, why in page["unreadable"].items()]
        return RebuiltRepository(
            one.name, one.id, one.host, domains, points, states, tuple(gone), tuple(unreadable)
        )

    def _protect(self, point: str, host: str, reason: str) -> PointStatus:
        host, _ = self._reader(self.show(point), host, "")
        return schemas.load(PointStatus, self._ask(host, queues.PROTECT, point, reason))

    def _seen(self) -> tuple[list[_Seen], dict[str, str]]:
        """The repositories that living hypervisors see; and why some cannot be used."""
        seen, unread = [], {}
        for host in self._living():
            try:
                answer = self._ask(host, queues.SCAN)
            except VirtvaultError as error:
                unread[host] = error.message
                continue
            for item in answer:
                one = _Seen(host, item["name"], item["id"], tuple(item["domains"]), item["why"])
                if one.why:
                    unread[one.where] = one.why
                else:
                    seen.append(one)
        return seen, unread

    def _find(self, point: str, hosts: Sequence[str] = ()) -> tuple[str, Point]:
        """A hypervisor whose repository has a point, and the point as it has it.

        :raises UnknownPoint: none has it.
        :raises RepositoryUnusable: one has it, and its manifest cannot be used.
        """
        trouble: VirtvaultError | None = None
        for host in hosts or self._living():
            try:
                answer = self._ask(host, queues.FIND_POINT, point)
            except VirtvaultError as error:
                # A newer worker may read what an older one cannot.
                trouble = error
                continue
            if answer:
                return host, schemas.load(Point, answer)
        raise trouble or UnknownPoint(
            f"No point {point!r} is known.", "`virtvault points` lists them."
        )

    def _reader(self, known: Point, host: str, repository: str) -> tuple[str, str]:
        """The hypervisor that reads a point, and what its repository is called there.

        Where it was made, unless that is silent or the repository has moved on.

        :raises NotReachable: none answers that has it.
        :raises UnknownPoint: none has it.
        """
        if host:
            said = self._host(host)
            if repository or known.repository in said.repositories:
                return host, repository or known.repository
            return host, self._find(known.id, [host])[1].repository
        near_by = self._said(known.host)
        local = near_by.repositories if near_by else ()
        wanted = repository or known.repository
        try:
            # Its name is not enough: each hypervisor may have a repository of that name.
            near = [known.host] if wanted in local else ()
            host, found = self._find(known.id, near)
            return host, repository or found.repository
        except (UnknownPoint, NotReachable):
            with contextlib.suppress(UnknownPoint, NotReachable):
                host, found = self._find(known.id)
                return host, repository or found.repository
        if wanted in local:
            return known.host, wanted  # its worker knows best what is wrong
        raise NotReachable(
            f"Point {known.id} is in repository {known.repository} ({known.repository_id}), which "
            f"no living hypervisor has; {known.host} made it.",
            "Start its worker, or add the repository to another's settings.",
        )

    def _keeper(self, host: str, repository: str, uuid: str) -> tuple[str, str]:
        """The hypervisor that prunes, and what the repository is called there.

        :raises UnknownRepository: no living hypervisor has it.
        :raises InvalidRequest: there are several that could be meant.
        """
        if host:
            if repository not in ("", *self._host(host).repositories):
                raise _no_repository(repository, self._seen()[0])
            return host, repository
        seen, _ = self._seen()
        meant = [s for s in seen if repository in ("", s.name, s.id)]
        if uuid:
            meant = [s for s in meant if uuid in s.domains] or meant
        if not meant:
            raise _no_repository(repository, seen)
        if len({s.id for s in meant}) > 1:
            raise InvalidRequest(
                f"{len({s.id for s in meant})} repositories could be meant: "
                f"{', '.join(f'{s.where} ({s.id})' for s in meant)}.",
                "Name one with --repository, and its hypervisor with --host.",
            )
        return meant[0].host, meant[0].name


def _no_repository(repository: str, seen: Sequence[_Seen]) -> UnknownRepository:
    return UnknownRepository(
        f"No living hypervisor has a repository {repository!r} that it can use.",
        f"There are {', '.join(s.where for s in seen) or 'none'}.",
    )
