"""Which hypervisor carries out a piece of long work, and what exactly it is asked.

The one place that decides it: for :class:`virtvault.Client`, for ``virtvault.submit`` on central
and so for the REST API.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from virtvault import queues, schemas
from virtvault.errors import InvalidRequest, UnknownPoint, UnknownRepository
from virtvault.fleet import Fleet
from virtvault.models import (
    BackupRequest,
    Point,
    PruneRequest,
    RestoreRequest,
    ServeRequest,
    VerifyRequest,
)

__all__ = ["REQUESTS", "Routing"]

Request = BackupRequest | RestoreRequest | VerifyRequest | ServeRequest | PruneRequest
# What each of `queues.LONG_TASKS` takes.
REQUESTS: dict[str, type[Request]] = {
    queues.BACKUP: BackupRequest,
    queues.RESTORE: RestoreRequest,
    queues.VERIFY: VerifyRequest,
    queues.SERVE: ServeRequest,
    queues.PRUNE: PruneRequest,
}


class Routing(Fleet):
    """Finds the hypervisor of a domain, or one that has a point's repository."""

    def route(self, task: str, plain: Mapping[str, Any], host: str = "") -> tuple[str, Request]:
        """The hypervisor that ``task`` is for, and its request as that one takes it.

        :param plain: the request as JSON has it; it is checked here.
        :param host: the hypervisor that is meant. Default: the one that fits.
        :raises BadInput: a field is wrong, or there is no such domain, point or repository.
        :raises NotReachable: Redis, central or that hypervisor does not answer.
        """
        request = schemas.load(REQUESTS[task], dict(plain))
        if isinstance(request, BackupRequest):
            return self._to_domain(request, host)
        if isinstance(request, PruneRequest):
            return self._to_keeper(request, host)
        return self._to_reader(request, host)

    def _to_domain(self, request: BackupRequest, host: str) -> tuple[str, Request]:
        named = request.domain if "/" in request.domain or not host else f"{host}/{request.domain}"
        found = self.find_domain(named)
        if host not in ("", found.host):
            raise InvalidRequest(
                f"host: domain {request.domain!r} is on hypervisor {found.host}, not on {host}.",
                "Leave host out: a backup goes to the hypervisor that the domain is on.",
            )
        repositories = self._host(found.host).repositories
        if request.repository and request.repository not in repositories:
            raise UnknownRepository(
                f"Hypervisor {found.host} has no repository {request.repository!r}.",
                f"It has {', '.join(repositories) or 'none'}.",
            )
        return found.host, replace(request, domain=found.uuid)

    def _to_keeper(self, request: PruneRequest, host: str) -> tuple[str, Request]:
        repository = request.repository
        if request.points and not (host and repository):
            host, repository = self._reader(self.show(request.points[0]), host, repository)
        host, repository = self._keeper(host, repository, request.domain)
        return host, replace(request, repository=repository)

    def _to_reader(
        self, request: RestoreRequest | VerifyRequest | ServeRequest, host: str
    ) -> tuple[str, Request]:
        known = self._point_of(request)
        # Where the domain is now: it may have been migrated since the point.
        if (isinstance(request, RestoreRequest) and request.in_place) or (
            isinstance(request, VerifyRequest) and request.against_source
        ):
            host = host or self.find_domain(known.uuid).host
        host, repository = self._reader(known, host, request.repository)
        return host, replace(request, repository=repository)

    def _point_of(self, request: RestoreRequest | VerifyRequest | ServeRequest) -> Point:
        if not isinstance(request, VerifyRequest):
            return self.show(request.point)
        if request.points:
            return self.show(request.points[0])
        found = [p for p in self.points(request.domain) if request.repository in ("", p.repository)]
        if not found:
            where = f" in repository {request.repository}" if request.repository else ""
            raise UnknownPoint(
                f"Domain {request.domain} has no point{where} to verify.",
                "`virtvault points` lists those that there are.",
            )
        return found[-1]
