"""What the repositories of this hypervisor hold, read from the manifests; and protection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from virtvault.errors import (
    InvalidRequest,
    PointBusy,
    RepositoryUnusable,
    UnknownPoint,
    VirtvaultError,
)
from virtvault.models import Point, PointStatus
from workers.engine import Engine, now
from workers.repository import DirectoryRepository, open_repository, sidecar
from workers.repository.directory import UUID

__all__ = ["Contents", "Listing", "contents", "find", "listings", "protect", "unprotect"]

# Bytes of a protection's reason: it stands in one line of a listing.
LONGEST_REASON = 300
# Seconds to wait for whoever decides about the domain's points: the caller waits for an answer.
SECONDS = 5.0


@dataclass(frozen=True)
class Listing:
    """One repository as this hypervisor sees it; ``why`` says why it cannot, else empty."""

    name: str
    id: str = ""
    domains: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Contents:
    """All points of a domain in a repository, as they were when somebody began to read, at ``at``.

    ``unreadable`` maps point ids to why their manifests cannot be used, with their paths.
    """

    repository_id: str
    uuid: str
    at: str
    points: tuple[Point, ...]
    statuses: tuple[PointStatus, ...]
    unreadable: dict[str, str]


def listings(engine: Engine) -> list[Listing]:
    """Every repository of this hypervisor, those that cannot be used too."""
    found = []
    for name in engine.settings.repositories:
        try:
            repository = open_repository(engine.settings, name)
            found.append(Listing(name, repository.id, tuple(repository.domains())))
        except VirtvaultError as error:
            found.append(Listing(name, why=error.message))
        except OSError as error:
            found.append(Listing(name, why=f"{error.filename}: {error.strerror}."))
    return found


def contents(engine: Engine, name: str, uuid: str) -> Contents:
    """One domain's points in a repository.

    :raises InvalidRequest: that is no uuid.
    :raises UnknownRepository: this hypervisor has none of that name.
    :raises RepositoryUnusable: it cannot be read.
    """
    if not UUID.fullmatch(uuid):
        raise InvalidRequest(f"uuid: {uuid!r} is none.", "Give a domain's uuid.")
    at = now()
    repository = open_repository(engine.settings, name)
    try:
        points, troubles = repository.scan(uuid)
        statuses = repository.statuses(uuid)
    except OSError as error:
        raise RepositoryUnusable(
            f"Repository {name} cannot be read: {error.filename}: {error.strerror}.",
            "Mount it, or mend its permissions; `virtvault check` tests it.",
        ) from error
    return Contents(
        repository.id,
        uuid,
        at,
        tuple(_here(repository, point) for point in points),
        tuple(statuses),
        troubles,
    )


def find(engine: Engine, point: str) -> Point | None:
    """A point in any of this host's repositories, None where there is none.

    :raises RepositoryUnusable: one has it, and its manifest cannot be used.
    """
    try:
        return _here(*_holding(engine, point))
    except UnknownPoint:
        return None


def protect(engine: Engine, point: str, reason: str) -> list[PointStatus]:
    """Keep a point whatever the rules say; gives how its domain's points are now.

    :raises InvalidRequest: the reason is no line of text.
    :raises UnknownPoint: no repository of this hypervisor has the point.
    :raises PointBusy: it is being pruned.
    :raises RepositoryUnusable: its manifest cannot be used, or nothing can be written there.
    """
    if not reason.isprintable() or not reason.strip() or len(reason.encode()) > LONGEST_REASON:
        raise InvalidRequest(
            f"reason: must be one line of at most {LONGEST_REASON} bytes.", "Say it shorter."
        )
    repository, found = _holding(engine, point)
    directory = repository.directory(found.uuid, found.id)
    said = {"reason": reason.strip(), "at": now(), "host": engine.settings.host}
    # A prune decides, and marks what it removes, while it alone holds the domain's points.
    with repository.alone(found.uuid, f"protect {point}", SECONDS):
        if (directory / sidecar.PRUNING).exists():
            raise PointBusy(
                f"Point {point} is being pruned: it is too late to protect it.",
                "Protect another: `virtvault points` lists them.",
            )
        sidecar.write(directory, sidecar.PROTECTED, said)
    return repository.statuses(found.uuid)


def unprotect(engine: Engine, point: str) -> list[PointStatus]:
    """Leave a point to the rules again; gives how its domain's points are now.

    :raises UnknownPoint: no repository of this hypervisor has the point.
    :raises RepositoryUnusable: its manifest cannot be used, or nothing can be written there.
    """
    repository, found = _holding(engine, point)
    sidecar.drop(repository.directory(found.uuid, found.id), sidecar.PROTECTED)
    return repository.statuses(found.uuid)


def _holding(engine: Engine, point: str) -> tuple[DirectoryRepository, Point]:
    damaged: RepositoryUnusable | None = None
    for repository in _repositories(engine):
        try:
            return repository, repository.find(point)
        except UnknownPoint:
            continue
        except RepositoryUnusable as error:
            damaged = error
    raise damaged or UnknownPoint(
        f"No repository of hypervisor {engine.settings.host} has point {point}.",
        "`virtvault points` lists them.",
    )


def _repositories(engine: Engine) -> Iterator[DirectoryRepository]:
    """Those that can be used: one that is not there now does not hide what another has."""
    for name in engine.settings.repositories:
        try:
            yield open_repository(engine.settings, name)
        except RepositoryUnusable:
            continue


def _here(repository: DirectoryRepository, point: Point) -> Point:
    """The point with its repository's name and id of today: it may have been moved since."""
    return replace(point, repository=repository.name, repository_id=repository.id)
