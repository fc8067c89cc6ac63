"""Hosts, runs, slots and policies in the catalog: late, twice, at once, in any order."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event, select

from tasks.catalog import Catalog, NewNotice
from tasks.catalog.tables import Base, SlotRow
from tasks.facts import facts
from tests.lab.stores import KINDS, Stores
from tests.unit.test_catalog import (
    FIRST,
    OTHER,
    REPOSITORY,
    SECOND,
    THIRD,
    UUID,
    now,
    point,
    status,
)
from virtvault import schemas
from virtvault.models import (
    Alert,
    DomainInfo,
    Inventory,
    Policy,
    PolicyDocument,
    RepositoryInfo,
    RunInfo,
    Schedule,
    Selector,
    SlotRecord,
)
from workers.journal import Run


def domain(
    uuid: str = UUID, state: str = "running", name: str = "web", ran: str = ""
) -> DomainInfo:
    return DomainInfo(name, uuid, "anywhere", state, 1, ("vda",), {"tier": "gold"}, True, ran)


def inventory(host: str, at: str, *domains: DomainInfo, **more: Any) -> Inventory:
    repository = RepositoryInfo("main", REPOSITORY, "other", len(at), 2**60)
    listed = tuple(replace(d, host=host) for d in domains)
    return Inventory(host, at, {"qemu": at}, (repository,), listed, "main", **more)


def run(task_id: str, minute: int = 1, state: str = "complete", **more: Any) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "task": "virtvault.backup",
        "host": "a",
        "state": state,
        "started": now(minute),
        "finished": now(minute + 1),
        "request": {"domain": UUID},
        "error": "" if state == "complete" else "it failed",
        "mend": "",
        "domain": "web",
        "uuid": UUID,
        **more,
    }


def slot(number: int, state: str, minute: int, attempt: int = 1, **more: Any) -> SlotRecord:
    task_id = f"task-{number}-{attempt}" if state in ("dispatched", "failed") else ""
    given = {"task_id": task_id, "domain": "web", "reason": f"{state} {minute}", **more}
    return SlotRecord(
        "gold", UUID, "backup", f"2026-02-0{number}", state, now(minute), attempt, **given
    )


def rows(catalog: Catalog) -> dict[str, list[Any]]:
    """Every row of every table."""
    with catalog._reading() as session:
        return {
            table.name: sorted(json.dumps(list(row)) for row in session.execute(select(table)))
            for table in Base.metadata.sorted_tables
        }


RECORDS: list[dict[str, Any]] = [
    {"inventory": schemas.dump(said)}
    for said in (
        inventory("a", now(1), domain(), domain(OTHER, "shut off", "db")),
        inventory("a", now(2), domain(name="web2")),
        inventory("a", now(3), trouble="libvirt does not answer"),
        inventory("b", now(2), domain(state="paused")),
        inventory("b", now(4)),
    )
] + [
    {"run": run("task-1-1", 1, "failed")},
    {"run": run("task-1-1", 2)},
    {"run": run("task-1-1", 3, "failed")},
    {"run": run("task-1-2", 4, "cancelled", transferred=5)},
    {"slots": [schemas.dump(slot(1, "missed", 9)), schemas.dump(slot(1, "dispatched", 1))]},
    {"slots": [schemas.dump(slot(1, "dispatched", 3, 2))]},
    {"slots": [schemas.dump(slot(1, "failed", 4, 2)), schemas.dump(slot(2, "skipped", 2))]},
    {"slots": [schemas.dump(slot(1, "skipped", 9, 2))]},
    {"slots": [schemas.dump(replace(slot(1, "failed", 5), uuid=OTHER))]},
    {"slots": [schemas.dump(replace(slot(1, "dispatched", 2, 2), uuid=OTHER))]},
    {"slots": [schemas.dump(slot(2, "missed", 8)), schemas.dump(slot(2, "skipped", 3))]},
    {"point": schemas.dump(point(FIRST))},
    {"point": schemas.dump(point(SECOND, FIRST))},
    {"point": schemas.dump(point(THIRD, SECOND))},
    {"statuses": [schemas.dump(status(THIRD, "bad", why="x"))], "at": now(3)},
]


@pytest.mark.parametrize("kind", KINDS)
def test_records_end_as_the_same_rows_however_they_come(stores: Stores, kind: str) -> None:
    """In any order, twice, and from several workers at once."""
    chance = random.Random(5)
    expected: dict[str, list[Any]] = {}
    for number in range(5):
        catalog = stores.catalog(kind)
        order = RECORDS * (1 if number == 0 else 2)
        if number:
            chance.shuffle(order)
        at_once([partial(record_all, catalog, part) for part in parts(order, number)])
        found = rows(catalog)
        expected = expected or found
        assert found == expected, f"order {number}"
    states = {(s.slot, s.attempt): (s.state, s.at) for s in all_slots(catalog)}
    assert states == {
        ("2026-02-01", 1): ("dispatched", now(1)),
        ("2026-02-01", 2): ("failed", now(4)),
        ("2026-02-02", 1): ("skipped", now(3)),
    }
    standing = {key: (s["slot"], s["attempt"]) for key, s in catalog.schedule_state().items()}
    assert standing == {
        f"gold/backup/{UUID}": ("2026-02-02", 1),
        f"gold/backup/{OTHER}": ("2026-02-01", 2),
    }
    ends = {r.task_id: (r.state, r.finished) for r in catalog.runs()}
    assert ends == {"task-1-1": ("complete", now(3)), "task-1-2": ("cancelled", now(5))}
    assert all(expected[name] for name in ("hosts", "domains", "slots", "schedule", "newest"))


def all_slots(catalog: Catalog) -> list[SlotRow]:
    with catalog._reading() as session:
        return list(session.scalars(select(SlotRow).where(SlotRow.uuid == UUID)))


def record_all(catalog: Catalog, records: list[dict[str, Any]]) -> None:
    for record in records:
        catalog.record(record)


def parts(order: list[Any], number: int) -> list[list[Any]]:
    workers = 4 if number % 2 else 1
    return [order[n::workers] for n in range(workers)]


def at_once(works: list[Any]) -> None:
    """Run them in threads of their own; the first error is the test's."""
    errors: list[BaseException] = []

    def one(work: Any) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_a_domain_is_where_it_is_active_else_where_it_was_listed_last(catalog: Catalog) -> None:
    def where() -> tuple[str, str]:
        ((info, _),) = catalog.domain("web")
        return info.host, info.state

    catalog.record_inventory(inventory("a", now(1), domain()))
    catalog.record_inventory(inventory("b", now(2), domain(state="shut off")))
    assert where() == ("a", "running")
    catalog.record_inventory(inventory("b", now(3), domain()))
    assert where() == ("b", "running")
    catalog.record_inventory(inventory("a", now(3), domain(state="migrating")))
    assert where() == ("b", "running")
    # Both shut off: a look at the one where it ran before does not take it back.
    catalog.record_inventory(inventory("b", now(4), domain(state="shut off", ran=now(4))))
    catalog.record_inventory(inventory("a", now(5), domain(state="shut off", ran=now(2))))
    assert where() == ("b", "shut off")
    catalog.record_inventory(inventory("a", now(6)))
    assert where() == ("b", "shut off")
    # libvirt's silence is no word about the domain.
    catalog.record_inventory(inventory("b", now(7), trouble="libvirt does not answer"))
    assert where() == ("b", "shut off")
    assert [len(said.domains) for said in catalog.inventories()] == [0, 1]
    catalog.record_inventory(inventory("b", now(8)))
    assert where() == ("a", "absent")
    ((info, seen),) = catalog.domains()
    assert (seen, info.labels, info.targets) == (now(5), {"tier": "gold"}, ("vda",))


def test_domains_are_found_by_name_uuid_and_host(catalog: Catalog) -> None:
    said = inventory("a", now(1), domain(OTHER, name="db", ran="x"), domain(), trouble="t")
    said = replace(said, repositories=(replace(said.repositories[0], why="w"),))
    assert not untold(said) | untold(said.repositories[0]) | untold(said.domains[0])
    catalog.record_inventory(said)
    catalog.record_inventory(inventory("b", now(1), domain(SECOND, name="web")))
    catalog.record_point(replace(point(FIRST, uuid=THIRD), domain="old", host="gone"))

    def found(wanted: str) -> list[str]:
        return [info.uuid for info, _ in catalog.domain(wanted)]

    assert (found("web"), found("b/web"), found("db")) == ([UUID, SECOND], [SECOND], [OTHER])
    assert (found(OTHER), found("c/web"), found("nobody")) == ([OTHER], [], [])
    # A domain of which there are points alone is known, and known to be nowhere.
    assert found("old") == [THIRD]
    assert [i.state for i, _ in catalog.domains() if i.uuid == THIRD] == ["absent"]
    # All that was said comes back.
    assert catalog.inventories()[0] == replace(said, host="a")


def untold(model: Any) -> set[str]:
    """The fields that were left at their defaults, and so would not be missed."""
    return {f.name for f in fields(model) if getattr(model, f.name) in (f.default, (), {})}


def test_the_newest_good_point_and_its_chain(catalog: Catalog) -> None:
    def newest() -> tuple[str, int, int]:
        (found,) = catalog.newest()
        return found.point, found.chain, found.points

    for number, id_ in enumerate((FIRST, SECOND, THIRD)):
        catalog.record_point(point(id_, (FIRST, SECOND, THIRD)[number - 1] if number else ""))
    assert newest() == (THIRD, 3, 3)
    catalog.record_statuses(
        [status(FIRST), status(SECOND), status(THIRD, "broken", why="x")], now(1)
    )
    assert newest() == (SECOND, 2, 3)
    catalog.record_point(point(SECOND, merged=(FIRST,)))
    catalog.record_removed(REPOSITORY, [FIRST, THIRD], now(2))
    assert newest() == (SECOND, 1, 1)
    catalog.record_removed(REPOSITORY, [SECOND], now(3))
    assert catalog.newest() == []


def test_a_run_is_found_with_the_slot_that_it_filled(catalog: Catalog) -> None:
    catalog.record_slots([slot(1, "dispatched", 1), slot(1, "dispatched", 3, 2)])
    catalog.record_slots([slot(2, "skipped", 4, task_id="task-1-2")])
    catalog.record_run(run("task-1-1", 1, "failed"))
    catalog.record_run(run("task-1-2", 3, transferred=7, stored=3, point=FIRST, sync="full"))
    catalog.record_run(run("by-hand", 2, uuid=OTHER, domain="db"))
    listed = catalog.runs()
    assert [r.task_id for r in listed] == ["task-1-2", "by-hand", "task-1-1"]
    assert [(r.policy, r.slot) for r in listed] == [
        ("gold", "2026-02-01"),
        ("", ""),
        ("gold", "2026-02-01"),
    ]
    assert (listed[0].seconds, listed[0].transferred, listed[0].point) == (60.0, 7, FIRST)
    assert [r.task_id for r in catalog.runs(since=now(3), limit=1)] == ["task-1-2"]
    assert [r.task_id for r in catalog.runs(domain="db")] == ["by-hand"]
    assert [r.task_id for r in catalog.runs(policy="gold", domain=UUID)] == ["task-1-2", "task-1-1"]
    last = catalog.last_runs()
    assert {uuid: r.task_id for uuid, r in last.items()} == {UUID: "task-1-2", OTHER: "by-hand"}
    assert catalog.last_runs("verify") == {}
    assert [(s.slot, s.attempt, s.state) for s in catalog.slots(domain="web")] == [
        ("2026-02-02", 1, "skipped"),
        ("2026-02-01", 2, "dispatched"),
    ]
    assert catalog.slots(since=now(4)) == []
    assert catalog.schedule_state() == {
        f"gold/backup/{UUID}": {
            "slot": "2026-02-02",
            "state": "skipped",
            "attempt": 1,
            "task_id": "task-1-2",
            "at": now(4),
            "ended": True,
        }
    }


def test_a_boot_test_can_be_told_from_another_verify(catalog: Catalog) -> None:
    for task_id, boot in (("t1", True), ("t2", False)):
        request = {"points": [FIRST], "boot": boot}
        catalog.record({"run": run(task_id, task="virtvault.verify", request=request)})
    assert {one.task_id: (one.kind, one.sync) for one in catalog.runs()} == {
        "t1": ("verify", "boot"),
        "t2": ("verify", ""),
    }


def test_a_run_of_a_worker_of_before_is_told_of_the_domain_that_it_means(catalog: Catalog) -> None:
    catalog.record_inventory(inventory("a", now(1), domain()))
    catalog.record_point(point(FIRST, uuid=OTHER))
    told = {"domain": "", "uuid": ""}
    for task_id, request in {
        "name": {"domain": "a/web"},
        "uuid": {"domain": UUID, "repository": "main"},
        "restore": {"point": FIRST},
        "unknown": {"domain": "nobody"},
    }.items():
        catalog.record_run(run(task_id, **told, request=request, state="failed"))
    found = {r.task_id: (r.domain, r.uuid, r.repository, r.point) for r in catalog.runs()}
    assert found == {
        "name": ("web", UUID, "", ""),
        "uuid": ("web", UUID, "main", ""),
        "restore": ("web", OTHER, "", FIRST),
        "unknown": ("nobody", "", "", ""),
    }


def test_who_asked_is_told_of_an_end_once(catalog: Catalog) -> None:
    """Whether he asks before the end or after it, and however often the end is told."""
    catalog.record_slots([slot(1, "dispatched", 1)])
    catalog.add_callback("task-1-1", "https://one")
    at_once([lambda: catalog.record_run(run("task-1-1"))] * 4)
    catalog.record_run(run("unasked"))
    catalog.record_run(run("late"))
    at_once([lambda: catalog.add_callback("late", "https://two", now(9))] * 3)
    due = catalog.due_notices(now(9))
    assert sorted((n.target, n.payload["task_id"]) for n in due) == [
        ("https://one", "task-1-1"),
        ("https://two", "late"),
    ]
    told = next(schemas.load(RunInfo, n.payload) for n in due if n.target == "https://one")
    assert (told.state, told.policy, told.uuid) == ("complete", "gold", UUID)


def document(*names: str) -> PolicyDocument:
    every = Schedule(every=3600)
    return PolicyDocument(tuple(Policy(name, Selector(names=("*",)), every) for name in names))


def test_versions_of_policies_are_numbered_by_one_writer_after_another(catalog: Catalog) -> None:
    first = catalog.apply_policies(document("a"), "a: 1", "me", "the first", now(1))
    assert catalog.apply_policies(document("a"), "a: 1", "you", "again", now(2)) == first
    works = [
        lambda n=n: catalog.apply_policies(document(f"p{n}"), f"p{n}", "me", "", now(n))
        for n in range(4)
    ]
    at_once(works)
    versions = catalog.policy_versions()
    assert [v.number for v in versions] == [5, 4, 3, 2, 1]
    assert {(v.text, v.document) for v in versions} == {("", None)}
    held = catalog.policies()
    assert held is not None
    assert (held.number, held.policies) == (5, 1)
    assert held.text == held.document.policies[0].name  # type: ignore[union-attr]
    assert catalog.policies(1) == first
    assert first.document == document("a")
    assert catalog.policies(6) is None
    # Back to what was before the last is a version of its own.
    assert catalog.apply_policies(document("a"), "a: 1", "me", "", now(9)).number == 6


def test_one_open_alert_of_a_kind_and_subject_with_what_is_told_of_it(catalog: Catalog) -> None:
    alert = Alert("rpo", UUID, now(1), "too old", domain="web")
    opened: list[bool] = []
    at_once(
        [lambda: opened.append(catalog.open_alert(alert, [NewNotice("n1", "t", {"x": 1})]))] * 4
    )
    assert sorted(opened) == [False, False, False, True]
    assert not catalog.open_alert(replace(alert, opened=now(2)), [NewNotice("n2", "t", {})])
    assert [n.id for n in catalog.due_notices(now(1))] == ["n1"]
    closed = catalog.close_alert("rpo", UUID, now(7), [NewNotice("n4", "t", {})])
    assert closed == replace(alert, closed=now(7))
    assert catalog.close_alert("rpo", UUID, now(8), [NewNotice("n5", "t", {})]) is None
    assert (catalog.alerts(), catalog.alerts(now(6))) == ([], [closed])
    # The same opening told late does not open it again; a new one does.
    assert not catalog.open_alert(alert)
    assert catalog.open_alert(replace(alert, opened=now(9)))
    catalog.notice_failed("n1", "HTTP 500", now(20))
    assert catalog.add_notice("n3", "t", {}, now(9))
    catalog.notice_failed("n3", "HTTP 410", now(20), give_up=True)
    catalog.notice_sent("n4", now(10))
    assert catalog.due_notices(now(19)) == []
    (waiting,) = catalog.due_notices(now(20))
    assert (waiting.id, waiting.tries, waiting.error) == ("n1", 1, "HTTP 500")


def test_history_is_forgotten_and_what_is_in_force_is_not(catalog: Catalog) -> None:
    catalog.apply_policies(document("gold"), "x", "", "", now(1))
    catalog.record_point(point(FIRST))
    for task_id, minute in (("old", 1), ("new", 8)):
        catalog.record_run(run(task_id, minute))
    catalog.record_slots([slot(1, "dispatched", 1), replace(slot(1, "missed", 1), policy="away")])
    catalog.open_alert(Alert("host", "a", now(1), "gone"))
    catalog.open_alert(Alert("host", "b", now(1), "gone"))
    catalog.close_alert("host", "b", now(2))
    catalog.add_notice("waits", "t", {}, now(1))
    catalog.add_notice("sent", "t", {}, now(1))
    catalog.notice_sent("sent", now(2))
    catalog.forget(now(5))
    assert [r.task_id for r in catalog.runs()] == ["new"]
    assert (catalog.slots(), list(catalog.schedule_state())) == ([], [f"gold/backup/{UUID}"])
    assert [alert.subject for alert in catalog.alerts(now(0))] == ["a"]
    assert catalog.add_notice("sent", "t", {}, now(9))
    assert not catalog.add_notice("waits", "t", {}, now(9))
    assert len(catalog.points()) == len(catalog.policy_versions()) == 1


@contextmanager
def statements(catalog: Catalog) -> Iterator[list[str]]:
    said: list[str] = []

    def note(_c: Any, _u: Any, statement: str, *_: Any) -> None:
        said.append(statement)

    event.listen(catalog._engine, "before_cursor_execute", note)
    yield said
    event.remove(catalog._engine, "before_cursor_execute", note)


def test_questions_about_the_fleet_are_a_few_statements_however_many_domains(
    catalog: Catalog,
) -> None:
    uuids = [f"{n:08x}-0000-4000-8000-000000000000" for n in range(50)]
    catalog.record_inventory(
        inventory("a", now(1), *(domain(uuid, name=f"d{uuid[:8]}") for uuid in uuids))
    )
    catalog.record_slots([replace(slot(1, "dispatched", 1), uuid=uuid) for uuid in uuids])
    for uuid in uuids[:3]:
        catalog.record_run(run(uuid, uuid=uuid))
    with statements(catalog) as said:
        assert len(catalog.domains()) == 50
        assert len(catalog.schedule_state()) == 50
        assert len(catalog.last_runs()) == 3
        assert catalog.newest() == []
    assert len([s for s in said if s.startswith(("SELECT", "WITH"))]) == 5


def test_what_is_told_of_a_run_comes_from_its_result_and_else_from_its_journal() -> None:
    made = point(FIRST)
    full = replace(made.disks[0], transferred=5)
    disks = (full, replace(full, target="vdb", sync="incremental"))
    result = {**schemas.dump(replace(made, disks=disks)), "point": FIRST}
    told = {"domain": "web", "uuid": UUID, "repository": "main", "point": FIRST}
    assert facts(None, result) == {
        **told,
        "started": made.started,
        "sync": "mixed",
        "transferred": 10,
        "stored": 2 * 2**20,
    }
    journal = Run("t", "backup", {}, **told, started=now(1))
    assert facts(journal, None) == {**told, "started": now(1)}
    assert facts(None, {"verdicts": [{"point": FIRST}], "repository": "main"}) == {
        "repository": "main",
        "point": FIRST,
    }
    assert facts(None, None) == {}


def test_what_no_database_takes_keeps_nothing_else_from_being_recorded(catalog: Catalog) -> None:
    """A guest's agent may say anything; a file's name may be no text."""
    said = slot(1, "failed", 1, reason="The agent said \0; /disk\udcff is gone; ünïcode stays.")
    catalog.record({"slots": [schemas.dump(said), schemas.dump(slot(2, "missed", 2))]})
    reasons = {record.reason for record in catalog.slots()}
    assert reasons == {
        "The agent said \ufffd; /disk\ufffd is gone; ünïcode stays.",
        "missed 2",
    }
