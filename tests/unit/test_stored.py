"""Which hypervisor reads, prunes or rebuilds what: the client over a wire of the test's own.

Repositories and catalog are real; only the queues between them are not there.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.catalog import Catalog
from tests.unit.test_repository import FIRST, SECOND, THIRD, UUID, store
from virtvault import Client, queues, schemas
from virtvault.errors import (
    BadInput,
    InvalidRequest,
    NotReachable,
    RepositoryUnusable,
    UnknownDomain,
    UnknownPoint,
    UnknownRepository,
)
from virtvault.models import DomainInfo, HostInfo, Point, PointStatus, PruneRequest, RetentionRules
from virtvault.settings import RepositorySettings, Settings
from workers import stored
from workers.engine import Engine, now
from workers.repository import manifest, open_repository


class Fleet(Client):
    """Hypervisors that answer at once, or not at all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.engines: dict[str, Engine] = {}
        self.silent: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.sent: list[tuple[str, str, dict[str, Any]]] = []
        self.catalog = Catalog(f"sqlite:///{directory}/catalog.sqlite")

    def add(self, host: str, **repositories: str) -> Engine:
        for path in repositories.values():
            (self.directory / path).mkdir(exist_ok=True)
        settings = Settings(
            host=host,
            state_dir=str(self.directory / host),
            repositories={
                name: RepositorySettings(name, str(self.directory / path))
                for name, path in repositories.items()
            },
        )
        self.engines[host] = Engine.of(settings)
        return self.engines[host]

    def put(self, host: str, repository: str, id_: str, parent: str = "") -> Point:
        """A point that is in the catalog, too."""
        opened = open_repository(self.engines[host].settings, repository)
        point = replace(store(opened, id_, parent), host=host)
        (opened.directory(UUID, id_) / manifest.FILE).write_text(manifest.text(point))
        self.catalog.record_point(point)
        return point

    # -- the wire -----------------------------------------------------------------------------

    def _living(self) -> list[str]:
        return sorted(set(self.engines) - self.silent)

    def _said(self, host: str) -> HostInfo | None:
        if host not in self._living():
            return None
        repositories = tuple(sorted(self.engines[host].settings.repositories))
        return HostInfo(host, True, now(), repositories=repositories)

    def _host(self, host: str) -> HostInfo:
        said = self._said(host)
        if said is None:
            raise NotReachable(f"The worker of hypervisor {host!r} is not heard of.")
        return said

    def find_domain(self, domain: str) -> DomainInfo:
        raise UnknownDomain(f"No hypervisor has a domain {domain!r}.")

    def _ask(self, host: str, task: str, *arguments: Any, **named: Any) -> Any:
        self._host(host)
        self.asked.append((host, task))
        engine = self.engines[host]
        if task == queues.SCAN and arguments:
            return schemas.dump(stored.contents(engine, *arguments))
        if task == queues.SCAN:
            return [schemas.dump(item) for item in stored.listings(engine)]
        if task == queues.FIND_POINT:
            found = stored.find(engine, *arguments)
            return schemas.dump(found) if found else None
        if task == queues.PROTECT:
            point, reason = arguments
            done = stored.protect(engine, *arguments) if reason else stored.unprotect(engine, point)
            self.catalog.record_statuses(done, now())
            return next(schemas.dump(status) for status in done if status.point == point)
        assert task == queues.DOMAINS
        return []

    def _question(self, queue: str, task: str, *arguments: Any, **named: Any) -> Any:
        assert queue == queues.CENTRAL
        if task == queues.REBUILD:
            (page,) = arguments
            points = [schemas.load(Point, item) for item in page["points"]]
            statuses = [schemas.load(PointStatus, item) for item in page["statuses"]]
            loaded = {**page, "points": points, "statuses": statuses}
            return self.catalog.rebuild(**loaded)
        return getattr(self.catalog, task.removeprefix("virtvault."))(*arguments)

    def _submit(self, task: str, host: str, payload: dict[str, Any]) -> Any:
        self.sent.append((task, host, payload))


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def ids(fleet: Fleet) -> list[str]:
    return [point.id for point in fleet.points()]


# -- rebuild --------------------------------------------------------------------------------------


def test_a_catalog_is_made_anew_from_nothing_but_manifests(fleet: Fleet, tmp_path: Path) -> None:
    fleet.add("hv1", main="a")
    for id_, parent in ((FIRST, ""), (SECOND, FIRST), (THIRD, SECOND)):
        fleet.put("hv1", "main", id_, parent)
    fleet.protect(FIRST, "before the migration")
    before = (fleet.points(), fleet.statuses())
    fleet.catalog = Catalog(f"sqlite:///{tmp_path}/new.sqlite")
    assert ids(fleet) == []
    done = fleet.rebuild()
    (one,) = done.repositories
    assert (one.name, one.host, one.domains, one.points) == ("main", "hv1", 1, 3)
    assert (one.states, one.gone, one.unreadable, done.unread) == ({"ok": 3}, (), (), {})
    assert fleet.points() == before[0]
    assert {s.point: s.protected for s in fleet.statuses()} == {
        FIRST: "before the migration",
        SECOND: "",
        THIRD: "",
    }
    assert fleet.rebuild() == done


def test_a_rebuild_names_what_it_cannot_read_and_what_is_gone(fleet: Fleet) -> None:
    fleet.add("hv1", main="a")
    for id_, parent in ((FIRST, ""), (SECOND, FIRST), (THIRD, SECOND)):
        fleet.put("hv1", "main", id_, parent)
    directory = fleet.directory / "a" / UUID
    path = directory / SECOND / manifest.FILE
    path.write_text(path.read_text().replace('"host": "hv1"', '"host": "hv9"'))
    (one,) = fleet.rebuild().repositories
    assert (one.points, one.states, one.gone) == (2, {"ok": 1, "broken": 2}, ())
    (bad,) = one.unreadable
    assert (bad.point, bad.uuid) == (SECOND, UUID)
    assert str(path) in bad.why
    assert "its seal does not fit" in bad.why
    with pytest.raises(RepositoryUnusable, match="its seal does not fit"):
        fleet.show(SECOND)
    shutil.rmtree(directory)
    (one,) = fleet.rebuild().repositories
    assert (one.points, one.gone) == (0, (FIRST, SECOND, THIRD))
    assert (ids(fleet), fleet.statuses()) == ([], [])


def test_a_repository_that_several_see_is_read_once_and_one_that_nobody_can_stays_listed(
    fleet: Fleet,
) -> None:
    fleet.add("hv1", main="shared", own="one")
    fleet.add("hv2", backup="shared")
    fleet.add("hv3", own="three")
    fleet.put("hv1", "main", FIRST)
    fleet.put("hv1", "own", SECOND)
    gone = fleet.put("hv3", "own", THIRD)
    fleet.silent.add("hv3")
    (fleet.directory / "one").rename(fleet.directory / "unmounted")
    done = fleet.rebuild()
    assert [(r.name, r.host) for r in done.repositories] == [("main", "hv1")]
    assert [host for host, task in fleet.asked if task == queues.SCAN].count("hv2") == 1
    assert set(done.unread) == {"hv1/own", gone.repository_id} | {
        id_ for id_, domains in fleet.catalog.known().items() if SECOND in domains[UUID]
    }
    assert "is not a directory" in done.unread["hv1/own"]
    assert "its 1 points stay listed" in done.unread[gone.repository_id]
    assert ids(fleet) == [FIRST, SECOND, THIRD]
    with pytest.raises(UnknownRepository, match="'nothing'") as caught:
        fleet.rebuild("nothing")
    assert "hv1/main" in caught.value.mend


def test_where_one_hypervisor_fails_in_the_middle_another_reads_on(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.add("hv1", main="shared")
    fleet.add("hv2", main="shared")
    fleet.put("hv1", "main", FIRST)
    ask = Fleet._ask

    def fails(self: Fleet, host: str, task: str, *arguments: Any, **named: Any) -> Any:
        if host == "hv1" and task == queues.SCAN and arguments:
            raise NotReachable("No answer.", "")
        return ask(self, host, task, *arguments, **named)

    monkeypatch.setattr(Fleet, "_ask", fails)
    done = fleet.rebuild()
    assert [(r.host, r.points) for r in done.repositories] == [("hv2", 1)]
    assert set(done.unread) == {"hv1/main"}


# -- who reads ------------------------------------------------------------------------------------


def restored_by(fleet: Fleet, point: str, **options: Any) -> tuple[str, str]:
    fleet.restore(point, to="/restores/x", **options)
    task, host, payload = fleet.sent[-1]
    assert task == queues.RESTORE
    return host, payload["repository"]


def test_a_point_is_read_where_it_was_made_and_else_where_its_repository_is_now(
    fleet: Fleet,
) -> None:
    fleet.add("hv1", local="a")
    fleet.put("hv1", "local", FIRST)
    # Of the same name, and another repository.
    fleet.add("hv2", local="b")
    assert restored_by(fleet, FIRST) == ("hv1", "local")
    fleet.silent.add("hv1")
    with pytest.raises(NotReachable, match="in repository local"):
        fleet.restore(FIRST, to="/restores/x")
    # Moved to another host, under another name.
    (fleet.directory / "a").rename(fleet.directory / "moved")
    fleet.add("hv3", old="moved")
    assert restored_by(fleet, FIRST) == ("hv3", "old")
    assert restored_by(fleet, FIRST, host="hv3") == ("hv3", "old")
    fleet.silent.clear()
    (fleet.directory / "a").mkdir()
    assert restored_by(fleet, FIRST) == ("hv3", "old")


def test_a_pruned_point_is_said_to_be(fleet: Fleet) -> None:
    fleet.add("hv1", main="a")
    point = fleet.put("hv1", "main", FIRST)
    fleet.catalog.record_removed(point.repository_id, [FIRST], "2026-11-23T18:00:00.000Z")
    shutil.rmtree(fleet.directory / "a" / UUID)
    for ask in (fleet.show, fleet.protect, lambda p: fleet.restore(p, to="/restores/x")):
        with pytest.raises(UnknownPoint, match=r"was pruned on 2026-11-23T18:00:00\.000Z"):
            ask(FIRST)
    with pytest.raises(UnknownPoint, match="No point"):
        fleet.show(SECOND)


def test_protection_is_in_the_repository_and_refused_for_what_goes(fleet: Fleet) -> None:
    engine = fleet.add("hv1", main="a")
    fleet.put("hv1", "main", FIRST)
    assert fleet.protect(FIRST).protected == "protected by hand"
    assert fleet.protect(FIRST, "for the auditors").protected == "for the auditors"
    assert open_repository(engine.settings, "main").statuses(UUID)[0].protected
    assert fleet.unprotect(FIRST).protected == ""
    assert not list((fleet.directory / "a").rglob("protected.json"))
    for wrong in ("two\nlines", "x" * 301):
        with pytest.raises(InvalidRequest, match="one line of at most 300"):
            fleet.protect(FIRST, wrong)
    (fleet.directory / "a" / UUID / FIRST / "pruning.json").write_text("{}")
    with pytest.raises(BadInput, match="is being pruned"):
        fleet.protect(FIRST)
    assert not list((fleet.directory / "a").rglob("protected.json"))


# -- who prunes -----------------------------------------------------------------------------------


def pruned_by(fleet: Fleet, **options: Any) -> tuple[str, PruneRequest]:
    fleet.prune(**options)
    task, host, payload = fleet.sent[-1]
    assert task == queues.PRUNE
    return host, schemas.load(PruneRequest, payload)


RULES = {"rules": RetentionRules(daily=7)}


def test_a_prune_goes_to_a_hypervisor_that_has_the_repository(fleet: Fleet) -> None:
    fleet.add("hv1", main="shared")
    fleet.add("hv2", main="shared")
    fleet.put("hv2", "main", FIRST)
    fleet.silent.add("hv1")
    assert pruned_by(fleet, **RULES)[0] == "hv2"
    fleet.silent.clear()
    host, request = pruned_by(fleet, repository="main", **RULES)
    assert (host, request.repository, request.rules.daily) == ("hv1", "main", 7)
    # The domain is gone from libvirt; its points tell its uuid.
    assert pruned_by(fleet, domain="web", **RULES)[1].domain == UUID
    host, request = pruned_by(fleet, points=(FIRST,))
    assert (host, request.points, request.repository) == ("hv2", (FIRST,), "main")
    with pytest.raises(UnknownDomain):
        fleet.prune(domain="nobody", **RULES)
    with pytest.raises(InvalidRequest, match="at least one rule"):
        fleet.prune()
    with pytest.raises(NotReachable):
        fleet.prune(host="hv9", **RULES)
    with pytest.raises(UnknownRepository, match="'other'"):
        fleet.prune(host="hv1", repository="other", **RULES)


def test_where_several_repositories_could_be_meant_nothing_is_pruned(fleet: Fleet) -> None:
    fleet.add("hv1", local="a")
    fleet.add("hv2", local="b")
    fleet.put("hv2", "local", FIRST)
    for options in ({}, {"repository": "local"}):
        with pytest.raises(InvalidRequest, match=r"hv1/local .*, hv2/local") as caught:
            fleet.prune(**options, **RULES)
        assert "--host" in caught.value.mend
    with pytest.raises(UnknownRepository, match="'else'"):
        fleet.prune(repository="else", **RULES)
    assert fleet.sent == []
    # But only one of them has this domain's points.
    assert pruned_by(fleet, domain=UUID, **RULES)[0] == "hv2"
