"""Which alerts open and close, and of what somebody is told: a fleet that is played forward."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from beat.alerts import Changes, Open, Seen, decide
from virtvault.models import DomainStatus, FleetStatus, FleetTotals, HostInfo, SlotRecord

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = 3600
LEADS = (0.0, "")


class Play:
    """Keeps what `decide` says as the catalog would, and the clock."""

    def __init__(self, repeat: int = 24 * HOUR) -> None:
        self.now = START
        self.repeat = repeat
        self.open: dict[tuple[str, str], Open] = {}

    def look(self, after: float = 60, **seen: Any) -> list[tuple[str, str, str]]:
        """What is told, as (event, kind, subject), ``after`` seconds from the last look."""
        return [(t.event, t.alert.kind, t.alert.subject) for t in self.changes(after, **seen)]

    def changes(self, after: float = 60, **seen: Any) -> Sequence[Any]:
        self.now += timedelta(seconds=after)
        found: Changes = decide(Seen(self.now, **seen), self.open.values(), self.repeat)
        for alert in found.opened:
            self.open[alert.kind, alert.subject] = Open(alert)
        for alert in found.closed:
            del self.open[alert.kind, alert.subject]
        for telling in found.tellings:
            key = (telling.alert.kind, telling.alert.subject)
            if key in self.open:
                self.open[key] = Open(telling.alert, self.now.isoformat())
        return found.tellings


def domain(name: str, health: str = "late", **fields: Any) -> DomainStatus:
    given: dict[str, Any] = {
        "host": "hv1",
        "state": "running",
        "policies": ("daily",),
        "rpo": 24 * HOUR,
        "newest": "p",
        "age": 26.0 * HOUR,
        **fields,
    }
    return DomainStatus(domain=name, uuid=f"u-{name}", health=health, **given)


def fleet(*domains: DomainStatus, hosts: Sequence[str] = ("hv1",)) -> FleetStatus:
    known = tuple(HostInfo(host, True, "2026-03-01T11:00:00.000Z") for host in hosts)
    return FleetStatus("", FleetTotals(), domains, known, 1)


def failed(name: str = "db1", **fields: Any) -> SlotRecord:
    given = {"state": "failed", "at": "2026-03-01T12:00:00.000Z", "reason": "no room", **fields}
    return SlotRecord("daily", f"u-{name}", "backup", "2026-03-01T11:00:00.000Z", **given)


def test_a_domain_past_its_rpo_is_told_once_repeated_and_recovers() -> None:
    play = Play()
    assert play.look(status=fleet(domain("db1", "fresh"))) == []
    (told,) = play.changes(status=fleet(domain("db1", error="No room.", mend="Make some.")))
    assert (told.event, told.alert.kind, told.alert.domain) == ("opened", "rpo", "db1")
    assert told.words.endswith("its RPO is 24 h. No room.")
    assert told.alert.mend == "Make some."
    assert play.look(status=fleet(domain("db1"))) == []
    assert play.look(24 * HOUR, status=fleet(domain("db1"))) == [("lasting", "rpo", "u-db1")]
    # What was not looked at this time is not over.
    assert play.look(status=None, gone={}, beatless=LEADS, failed=[]) == []
    (told,) = play.changes(status=fleet(domain("db1", "fresh", newest="p2")))
    assert (told.event, told.alert.closed) == ("recovered", "2026-03-02T12:05:00.000Z")
    assert "fresh again: its newest good point is p2. That took 24 h." in told.words


def test_repeat_0_tells_once() -> None:
    play = Play(repeat=0)
    assert len(play.look(status=fleet(domain("db1")))) == 1
    assert play.look(1000 * HOUR, status=fleet(domain("db1"))) == []


def test_a_domain_without_a_point_has_its_rpo_from_its_first_slot() -> None:
    play, never = Play(), fleet(domain("db1", "never"))
    since = {"u-db1": START}
    assert play.look(10**6, status=never) == []
    play = Play()
    assert play.look(24 * HOUR, status=never, since=since) == []
    assert play.look(1, status=never, since=since) == [("opened", "rpo", "u-db1")]
    # It is not over because its history was forgotten.
    assert play.look(60, status=never) == []
    assert ("rpo", "u-db1") in play.open


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"rpo": 0, "health": "no rpo"}, "no longer held"), ({"health": "unprotected"}, "no longer")],
)
def test_what_is_no_longer_wanted_is_over(fields: dict[str, Any], words: str) -> None:
    play = Play()
    play.look(status=fleet(domain("db1")))
    (told,) = play.changes(status=fleet(domain("db1", **fields)))
    assert told.event == "recovered"
    assert words in told.words


def test_a_hypervisor_is_gone_after_two_minutes_and_until_it_is_back() -> None:
    play = Play()
    assert play.look(gone={"hv1": 120.0}) == []
    assert play.look(gone={"hv1": 121.0}) == [("opened", "host", "hv1")]
    # Another process has just begun to miss it.
    assert play.look(gone={"hv1": 0.0}) == []
    # Redis is away: nobody knows.
    assert play.look(gone=None, beatless=(10.0, "Redis does not answer")) == []
    assert play.look(gone={}) == [("recovered", "host", "hv1")]


def test_no_beat_is_told_after_a_minute_and_so_is_its_return() -> None:
    play = Play()
    assert play.look(beatless=(60.0, "none leads")) == []
    (told,) = play.changes(beatless=(61.0, "none leads"))
    assert told.words == "No beat leads, so nothing is scheduled: none leads."
    assert play.look(beatless=(0.0, "Redis does not answer")) == []
    assert play.look(beatless=LEADS) == [("recovered", "beat", "beat")]


def test_domains_that_are_late_because_their_hypervisor_is_gone_are_told_with_it() -> None:
    play, gone = Play(repeat=24 * HOUR), {"hv1": 121.0}
    names = [f"db{number}" for number in range(500)]
    assert play.look(gone=gone, status=fleet()) == [("opened", "host", "hv1")]
    late = [domain(name) for name in names[:300]]
    other = domain("web", host="hv2")
    (first, second) = play.changes(gone=gone, status=fleet(*late, other))
    assert (first.event, first.alert.domain) == ("opened", "web")
    assert (second.event, second.alert.kind) == ("lasting", "host")
    assert second.words == "300 domains of hypervisor hv1, which is gone, passed the RPO."
    late = [domain(name) for name in names]
    assert play.look(gone=gone, status=fleet(*late, other)) == []
    assert len(play.open) == 502
    # Back again: what has caught up was never told, and what is late still is told at once.
    caught_up = [domain(name, "fresh") for name in names[:499]]
    assert play.look(gone={}, status=fleet(*caught_up, late[499], other)) == [
        ("opened", "rpo", "u-db499"),
        ("recovered", "host", "hv1"),
    ]


def test_a_storm_is_told_in_portions() -> None:
    play = Play()
    late = [domain(f"db{number}") for number in range(100)]
    assert len(play.look(status=fleet(*late[:20]))) == 20
    assert play.look(60, status=fleet(*late[:21])) == []
    assert play.look(800, status=fleet(*late[:90])) == []
    assert len(play.look(60, status=fleet(*late[:90]))) == 70
    # Something else is told at once all the same.
    assert play.look(1, status=fleet(*late), gone={"hv9": 999.0}) == [("opened", "host", "hv9")]
    # And after an hour of calm all is as before.
    assert len(play.look(HOUR, status=fleet(*late))) == 10


def test_a_failed_slot_is_an_alert_until_its_entry_succeeds() -> None:
    play, status = Play(), fleet(domain("db1", "fresh"))
    (told,) = play.changes(failed=[(failed(attempt=3), "QEMU says no.", "Ask it.")], status=status)
    assert told.alert.subject == "daily/backup/u-db1"
    assert told.words.endswith("failed after 3 tries: QEMU says no.")
    assert told.alert.mend == "Ask it."
    # The next slot is at work, or failed and is tried again.
    assert play.look(failed=[], status=status) == []
    assert play.look(failed=[(failed(), "", "")], status=status) == []
    done = {"daily/backup/u-db1"}
    assert play.look(failed=[], settled=done, status=status) == [
        ("recovered", "failed", "daily/backup/u-db1")
    ]


def test_a_failed_slot_of_a_policy_that_no_longer_means_the_domain_is_over() -> None:
    play = Play()
    play.look(failed=[(failed(), "", "")], status=fleet(domain("db1", "fresh")))
    (told,) = play.changes(
        failed=[(failed(), "", "")], status=fleet(domain("db1", policies=("x",)))
    )[-1:]
    assert (told.event, told.alert.kind) == ("recovered", "failed")
