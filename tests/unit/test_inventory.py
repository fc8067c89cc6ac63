"""Where a domain is, what is worth telling, and what of its metadata is a label."""

from __future__ import annotations

import json
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from virtvault import Client, schemas
from virtvault.errors import (
    DomainBusy,
    NotReachable,
    RepositoryUnusable,
    UnknownDomain,
    VirtvaultError,
)
from virtvault.inventory import Said, _Text
from virtvault.models import DomainInfo, Inventory, RepositoryInfo
from virtvault.schemas.policies import LABEL
from virtvault.settings import RepositorySettings, Settings
from virtvault.whereabouts import Place, locate
from workers import inventory, labels
from workers.coexistence import of_arrival

DB1, DB2 = "11111111-2222-4333-8444-555555555555", "11111111-2222-4333-8444-666666666666"
AT = "2026-01-31T04:05:06.123Z"
EARLY, LATE, LATEST = (f"2026-01-31T0{hour}:00:00.000Z" for hour in (1, 2, 3))
GIB = 2**30


def at(host: str, state: str, active: str = "", uuid: str = DB1, seen: str = LATE) -> Place:
    return Place(DomainInfo("db1", uuid, host, state, active=active), seen)


def gone(host: str, state: str, active: str = "", seen: str = LATE) -> Place:
    return replace(
        at(host, state, active, seen=seen), alive=False, certain=False, why=f"{host} is gone."
    )


@pytest.mark.parametrize(
    ("places", "host"),
    [
        ([at("a", "running")], "a"),
        ([at("a", "shut off")], "a"),
        ([at("a", "shut off", LATEST), at("b", "paused")], "b"),
        # Libvirt has it paused on the destination until all of it has arrived.
        ([at("a", "running"), at("b", "migrating")], "a"),
        ([at("b", "migrating")], "b"),
        # Both have its definition: where it ran last.
        ([at("a", "shut off", EARLY), at("b", "shut off", LATE)], "b"),
        ([at("a", "shut off", EARLY), at("b", "shut off")], "a"),
        # It was started elsewhere after its hypervisor was lost.
        ([gone("a", "running"), at("b", "running")], "b"),
        ([gone("a", "running", seen=EARLY), at("b", "shut off", LATE)], "b"),
        # Libvirt is away and comes back: it is there all the same.
        ([replace(at("a", "running"), certain=False), at("b", "shut off", EARLY)], "a"),
    ],
)
def test_a_domain_is_where_it_runs_or_ran_last(places: list[Place], host: str) -> None:
    assert locate("db1", places).host == host
    assert locate("db1", places[::-1]).host == host


@pytest.mark.parametrize(
    ("places", "error", "words"),
    [
        ([], UnknownDomain, "No hypervisor has"),
        ([at("a", "running"), at("b", "running")], UnknownDomain, "on 2 hypervisors at once: a/"),
        ([at("a", "running"), at("b", "paused")], UnknownDomain, "on 2 hypervisors at once: a/"),
        ([at("a", "shut off"), at("b", "shut off")], UnknownDomain, "is on 2 hypervisors"),
        # Two domains of one name: not the one that runs.
        ([at("a", "running"), at("b", "shut off", uuid=DB2)], UnknownDomain, "on 2 hypervisors"),
        ([at("a", "running"), replace(gone("b", "running"), domain=at("b", "x", uuid=DB2).domain)],
         UnknownDomain, "on 2 hypervisors"),
        ([at("a", "migrating"), at("b", "migrating")], DomainBusy, "migrated between a/db1, b/db1"),
        ([gone("a", "running"), at("b", "migrating")], DomainBusy, "migrated between"),
        ([gone("a", "running")], NotReachable, "on hypervisor a: a is gone."),
        ([gone("a", "shut off")], NotReachable, "on hypervisor a: a is gone."),
        ([gone("a", "running"), at("b", "shut off", EARLY)], NotReachable, "on hypervisor a:"),
        ([gone("a", "running"), at("b", "shut off")], NotReachable, "on hypervisor a:"),
    ],
)  # fmt: skip
def test_where_that_cannot_be_told_it_is_said(
    places: list[Place], error: type[VirtvaultError], words: str
) -> None:
    for order in (places, places[::-1]):
        with pytest.raises(error, match=words) as caught:
            locate("db1", sorted(order, key=lambda place: place.host))
        assert caught.value.mend
        if error is NotReachable:
            with pytest.raises(error):
                locate("db1", order)


class Fleet(Client):
    """Hypervisors that have told something, and answer something else."""

    def __init__(self, told: dict[str, DomainInfo], now: dict[str, list[DomainInfo]]) -> None:
        self.now = now
        self.asked: list[str] = []
        self.inventories = self  # type: ignore[assignment]
        self._told = told

    def look(self) -> dict[str, Said]:
        return {
            host: Said(
                host, True, LATE, _Text(host, LATE, json.dumps(schemas.dump(known)).encode())
            )
            for host, domain in self._told.items()
            for known in [Inventory(host, LATE, {}, (), (domain,))]
        }

    def _domains_now(self, hosts: Sequence[str]) -> list[DomainInfo]:
        self.asked += hosts
        return [domain for host in hosts for domain in self.now[host]]


def test_what_seems_to_run_twice_or_not_at_all_is_asked_for_just_now() -> None:
    def domain(host: str, state: str) -> DomainInfo:
        return DomainInfo("db1", DB1, host, state)

    told = {host: domain(host, "running") for host in ("a", "b")}
    # It has just been migrated, and its source has not told yet.
    fleet = Fleet(told, {"a": [domain("a", "shut off")], "b": [domain("b", "running")]})
    assert fleet.find_domain("db1").host == "b"
    assert fleet.asked == ["a", "b"]
    with pytest.raises(UnknownDomain, match="runs on 2 hypervisors at once"):
        Fleet(told, {host: [domain(host, "running")] for host in told}).find_domain(DB1)
    assert Fleet(told, {}).find_domain("b/db1").host == "b"
    new = DomainInfo("new", DB2, "b", "running")
    assert Fleet(told, {"a": [], "b": [new]}).find_domain("new") == new
    many = {f"hv{number}": domain(f"hv{number}", "shut off") for number in range(17)}
    fleet = Fleet(many, {})
    with pytest.raises(UnknownDomain, match="No hypervisor has"):
        fleet.find_domain("new")
    assert fleet.asked == []


# -- what is worth telling -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "found", "told"),
    [
        (500 * GIB, 499 * GIB, False),
        (500 * GIB, 494 * GIB, True),
        (500 * GIB, 506 * GIB, True),
        # A hundredth of what is free: the less there is, the more it counts.
        (20 * GIB, 19 * GIB - 1, True),
        (2 * GIB, 0, True),
        (5, -1, True),
        (-1, -1, False),
    ],
)
def test_room_is_told_where_it_changed_by_more_than_a_gib_and_a_hundredth(
    before: int, found: int, told: bool
) -> None:
    known = Inventory("hv1", AT, {"qemu": "7.2"}, (RepositoryInfo("main", "x", free=before),), ())
    now = replace(known, at=LATEST, repositories=(RepositoryInfo("main", "x", free=found),))
    assert inventory.differs(known, now) is told


@pytest.mark.parametrize(
    "change",
    [
        {"trouble": "libvirt is away."},
        {"versions": {}},
        {"default": "main"},
        {"domains": ()},
        {"repositories": ()},
        {"repositories": (RepositoryInfo("main", "x", free=GIB, why="full"),)},
        {"repositories": (RepositoryInfo("other", "x", free=GIB),)},
        {"domains": (DomainInfo("db1", DB1, "hv1", "paused"),)},
        {"domains": (DomainInfo("db1", DB1, "hv1", "running", labels={"a": "b"}),)},
    ],
)
def test_every_other_change_is_told(change: dict[str, object]) -> None:
    domains = (DomainInfo("db1", DB1, "hv1", "running"),)
    room = (RepositoryInfo("main", "x", free=GIB),)
    known = Inventory("hv1", AT, {"qemu": "7.2"}, room, domains)
    assert inventory.differs(known, replace(known, **change))  # type: ignore[arg-type]
    assert not inventory.differs(known, replace(known, at=LATEST))


# -- repositories ----------------------------------------------------------------------------------


def test_a_look_gives_no_repository_its_id(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    settings = Settings(
        state_dir=str(tmp_path / "state"), repositories={"r": RepositorySettings("r", str(path))}
    )
    with pytest.raises(RepositoryUnusable, match="not a directory"):
        inventory.of_this_host(settings, "r")
    path.mkdir()
    found = inventory.of_this_host(settings, "r")
    assert (found.id, found.why) == ("", "")
    assert 0 < found.free <= found.size
    # It would be another one than that which is mounted here later.
    assert not list(path.iterdir())
    made = inventory.open_repository(settings, "r")
    assert inventory.of_this_host(settings, "r").id == made.id
    (path / "repository.json").unlink()
    with pytest.raises(RepositoryUnusable, match="is not mounted"):
        inventory.of_this_host(settings, "r")


def test_a_mount_that_hangs_holds_up_neither_the_look_nor_more_than_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang, looks = threading.Event(), []

    def look(_: Settings, name: str) -> RepositoryInfo:
        looks.append(name)
        hang.wait(30)
        return RepositoryInfo(name, "0123abcd", free=GIB, size=GIB)

    monkeypatch.setattr(inventory, "of_this_host", look)
    settings = Settings(repositories={"nfs": RepositorySettings("nfs", "/mnt/nfs")})
    repository = inventory._Repository(settings, "nfs")
    for _ in range(3):
        repository.ask()
        assert repository.answer(time.monotonic()).why == "/mnt/nfs does not answer."
    assert looks == ["nfs"]
    hang.set()
    found = repository.answer(time.monotonic() + 30)
    assert (found.id, found.free, found.why) == ("0123abcd", GIB, "")


# -- labels ----------------------------------------------------------------------------------------


def read(attributes: str, inside: str = "") -> dict[str, str]:
    return labels.labels_in(
        ElementTree.fromstring(
            f'<domain><metadata><v:labels xmlns:v="{labels.NAMESPACE}" {attributes}>{inside}'
            "</v:labels></metadata></domain>"
        )
    )


def test_labels_are_read_and_what_cannot_be_one_is_left_out() -> None:
    assert labels.labels_in(ElementTree.fromstring("<domain/>")) == {}
    assert read('tier="prod" team=" a &lt; ü "') == {"tier": "prod", "team": " a < ü "}
    hostile = f'empty="" long="{"x" * 301}" {"n" * 101}="x" two="a&#10;b" esc="a&#x85;b"'
    assert read(hostile + ' ok="1"', '<x y="z"/>') == {"ok": "1"}
    assert read('xmlns:o="urn:o" o:tier="x"') == {}
    many = read(" ".join(f'k{i:04}="v"' for i in range(5000)))
    assert list(many) == [f"k{i:04}" for i in range(labels.MOST)]


@pytest.mark.parametrize("name", ["a", "_A.b-c", "a" * 100, "a" * 101, "", "1a", "a b", "ä", "a\n"])
def test_a_label_is_what_a_selector_can_name(name: str) -> None:
    try:
        LABEL(name)
        selectable = True
    except Exception:
        selectable = False
    assert bool(labels.NAME.fullmatch(name)) is selectable


def test_labels_change_and_what_else_the_element_has_stays() -> None:
    text = '<labels tier="prod" team="a"><note>kept</note></labels>'
    changed = labels._changed(text, {"tier": 'a"<&', "team": "", "none": ""})
    assert changed is not None
    assert ElementTree.fromstring(changed).attrib == {"tier": 'a"<&'}
    assert "<note>kept</note>" in changed
    assert labels._changed('<labels a="b"/>', {"a": ""}) is None


# -- a domain that came paused ---------------------------------------------------------------------


def graph(*perms: list[str]) -> dict[str, object]:
    """As QEMU 7.2 answered for a virtio disk, shortened."""
    return {
        "nodes": [
            {"id": 1, "type": "block-driver", "name": "libvirt-1-storage"},
            {"id": 2, "type": "block-driver", "name": "libvirt-1-format"},
            *(
                {"id": 3 + n, "type": "block-backend", "name": f"/machine/peripheral/disk{n}/x"}
                for n in range(len(perms))
            ),
        ],
        "edges": [
            {"parent": 2, "child": 1, "name": "file", "perm": []},
            *(
                {"parent": 3 + n, "child": 2, "name": "root", "perm": perm}
                for n, perm in enumerate(perms)
            ),
        ],
    }


def test_images_that_qemu_has_not_taken_over_are_not_read() -> None:
    active = ["write", "consistent-read"]
    assert of_arrival(graph(active, ["consistent-read"]), "web") is None
    for wrong in (graph([]), graph(active, []), None):
        busy = of_arrival(wrong, "web")
        assert busy is not None
        assert "has not run since" in busy.sentence
        assert "virsh resume web" in busy.mend
