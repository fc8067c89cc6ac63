"""What the watch reads and writes in the catalog, on both databases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tasks.catalog import Catalog, NewNotice
from virtvault.models import Alert, DomainInfo, Inventory, RepositoryInfo, SlotRecord

UUID = "11111111-2222-4333-8444-555555555555"


def at(minute: int) -> str:
    return f"2026-03-01T12:{minute:02}:00.000Z"


def slot(number: int, state: str, *, attempt: int = 1, **fields: Any) -> SlotRecord:
    given = {"at": at(number), "task_id": f"t{number}-{attempt}", "reason": "why", **fields}
    return SlotRecord("daily", UUID, "backup", at(number), state, attempt=attempt, **given)


def run(task_id: str, minute: int, error: str = "") -> dict[str, Any]:
    return {
        "task_id": task_id,
        "task": "virtvault.backup",
        "request": {"domain": UUID},
        "host": "hv1",
        "started": at(minute),
        "finished": at(minute),
        "state": "failed" if error else "complete",
        "error": error,
        "mend": "mend" if error else "",
    }


def alert(subject: str, minute: int = 1, **fields: Any) -> Alert:
    return Alert("failed", subject, at(minute), "detail", **fields)


def test_a_slot_is_failing_by_its_last_try_and_settled_by_a_later_success(catalog: Catalog) -> None:
    catalog.record_slots([slot(1, "dispatched"), slot(1, "failed", attempt=2)])
    catalog.record_run(run("t1-2", 1, error="No room."))
    ((failed, error, mend),) = catalog.failing()
    assert (failed.attempt, error, mend) == (2, "No room.", "mend")
    opened = alert(f"daily/backup/{UUID}", 2, policy="daily", uuid=UUID)
    other = alert(f"daily/verify/{UUID}", 2, policy="daily", uuid=UUID)
    catalog.change_alerts(at(2), [opened, other], [], [], [])
    # At work again, and failed again: not settled.
    catalog.record_slots([slot(3, "dispatched")])
    assert catalog.failing() == []
    catalog.record_run(run("t3-1", 3, error="Again."))
    assert catalog.settled() == set()
    catalog.record_slots([slot(4, "dispatched")])
    catalog.record_run(run("t4-1", 4))
    assert catalog.settled() == {opened.subject}
    assert catalog.first_slots([UUID, "other"]) == {UUID: at(1)}


def test_alerts_and_their_notices_change_together_and_once(catalog: Catalog) -> None:
    first, second = alert("a"), alert("b")
    notice = NewNotice("n1", "https://x", {"k": 1})
    for _ in range(2):
        catalog.change_alerts(at(1), [first, second], [], [first], [notice])
    # Another central worker saw the same a moment later.
    later = replace(first, opened=at(2))
    catalog.change_alerts(at(2), [later], [], [], [])
    assert {a.subject: told for a, told in catalog.open_alerts()} == {"a": at(1), "b": ""}
    assert [n.id for n in catalog.due_notices(at(1))] == ["n1"]
    catalog.change_alerts(at(3), [], [first, first], [replace(second, detail="now")], [])
    ((still, told),) = catalog.open_alerts()
    assert (still.subject, still.detail, told) == ("b", "now", at(3))
    assert {a.subject: a.closed for a in catalog.alerts(at(0))} == {"a": at(3), "b": ""}


def test_hypervisors_without_their_domains(catalog: Catalog) -> None:
    domain = DomainInfo("db1", UUID, "hv1", "running")
    room = RepositoryInfo("main", "0123abcd", free=5, size=9)
    told = Inventory("hv1", at(1), {"qemu": "7.2"}, (room,), (domain,), default="main")
    catalog.record_inventory(told)
    catalog.record_inventory(Inventory("hv2", at(2), {}, (), ()))
    first, second = catalog.hypervisors()
    assert (first.host, first.domains, first.storage, first.alive) == ("hv1", 1, (room,), False)
    assert (second.host, second.domains) == ("hv2", 0)
    assert catalog.default_repositories() == {"hv1": "main", "hv2": ""}
