"""`virtvault status`, `runs` and `alerts` against a client that answers what the test says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from virtvault import client
from virtvault.cli.main import cli
from virtvault.models import Alert, DomainStatus, FleetStatus, FleetTotals, HostInfo, RunInfo
from virtvault.spans import in_words

AT = "2026-01-31T04:05:06.123Z"
POINT = "20260130T020000Z-0123abcd"
HOUR = 3600


def domain(name: str, health: str, **fields: Any) -> DomainStatus:
    given: dict[str, Any] = {"state": "running", "rpo": 24 * HOUR, "policies": ("daily",), **fields}
    return DomainStatus(name, f"uuid-{name}", "hv1", health=health, **given)


FRESH = domain("web", "fresh", newest=POINT, age=HOUR, chain=3, points=9, labels={"tier": "prod"})
LATE = domain("db1", "late", newest=POINT, age=26 * HOUR, chain=7, error="No room.", mend="Add.")
LATE2 = replace(LATE, domain="db2", uuid="uuid-db2", age=27.0 * HOUR)
NEVER = domain("new\x1b[2J", "never", points=2)
FAILING = domain("mail", "fresh", newest=POINT, age=HOUR, error="The job failed.", mend="Look.")
BARE = domain("toy", "unprotected", rpo=0, policies=())
ABSENT = domain("old", "unprotected", state="absent", rpo=0, policies=())
TOTALS = FleetTotals(3, 1, 6, 2, 2, 1, 0, 1, 4, 3, 1, 12, 2**40)
FLEET = FleetStatus(
    AT,
    TOTALS,
    (FRESH, FAILING, BARE, LATE, NEVER, LATE2, ABSENT),
    (HostInfo("hv1", True, AT),),
    policy_version=7,
    beat="hv9:12 since 2026-01-30T00:00:00Z",
)
GONE = Alert("host", "hv2", AT, "Hypervisor hv2 is gone.", "Start it.", host="hv2")
RUN = RunInfo("t1", "backup", "hv1", "failed", AT, AT, "db1", error="No room.", mend="Add.")

Command = Callable[..., Result]


class Answers:
    """What the test lets the fleet say, and what was asked."""

    def __init__(self) -> None:
        self.status = FLEET
        self.found: list[Alert] = [GONE]
        self.ran: list[RunInfo] = [RUN, replace(RUN, task_id="t2", state="running", finished="")]
        self.asked: dict[str, Any] = {}

    def fleet(self, domain: str = "") -> FleetStatus:
        found = [d for d in self.status.domains if domain in ("", d.domain)]
        return replace(self.status, domains=tuple(found))

    def alerts(self, **asked: Any) -> list[Alert]:
        self.asked = asked
        return self.found

    def runs(self, **asked: Any) -> list[RunInfo]:
        self.asked = asked
        return self.ran


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    made = Answers()
    monkeypatch.setattr(client, "Client", lambda _settings: made)
    return made


@pytest.fixture
def run(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("VIRTVAULT_HOST", "lab")
    return lambda *arguments: CliRunner().invoke(cli, [*arguments])


def test_what_is_wrong_comes_first_and_each_error_once(run: Command) -> None:
    done = run("status")
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert lines[0] == "Of 5 protected domains 2 late, 1 never backed up, 1 failing; 2 fresh."
    assert "3 hypervisors, 1 of them gone with 4 domains" in lines[1]
    assert "version 7; beat hv9:12 since" in lines[2]
    assert lines[3:5] == ["! Hypervisor hv2 is gone.", "  Start it."]
    words = [line.split() for line in lines[7:11]]
    assert [w[0] for w in words] == ["never", "late", "late", "failing"]
    assert [w[1] for w in words[1:]] == ["db2", "db1", "mail"]
    assert words[2][2:] == ["hv1", "26", "h", "24", "h", "7", POINT, "daily"]
    assert done.output.count("No room.") == 1
    assert "db2, db1: No room.\n  Add.\n" in done.output
    assert "1 unprotected: hv1/toy" in done.output
    assert "web" not in done.output
    assert "\x1b" not in done.output


@pytest.mark.parametrize(
    ("options", "shown", "code"),
    [
        (("--late",), {"db1", "db2", "mail", "new"}, 1),
        (("--unprotected",), {"toy", "old"}, 0),
        (("--label", "tier=pr*"), {"web"}, 0),
        (("--host", "hv1", "--exit-zero"), {"web", "mail", "toy", "db1", "new", "db2", "old"}, 0),
        (("--label", "tier=none"), set(), 0),
    ],
)
def test_options_narrow_what_is_shown_and_judged(
    run: Command, options: tuple[str, ...], shown: set[str], code: int
) -> None:
    plain, found = run("status", *options), run("status", "--json", *options)
    assert (plain.exit_code, found.exit_code) == (code, code)
    names = {one["domain"].partition("\x1b")[0] for one in json.loads(found.output)["domains"]}
    assert names == shown
    listed = {
        name for name in ("web", "mail", "toy", "db1", "new", "db2", "old") if name in plain.output
    }
    assert listed == shown


def test_what_means_no_domain_is_never_silent(run: Command) -> None:
    assert run("status", "--label", "teir=prod").output == "No such domains.\n"
    wrong = run("status", "--host", "hv7")
    assert wrong.exit_code == 2
    assert "No hypervisor 'hv7' is known." in wrong.output


def test_one_domain_in_full(run: Command) -> None:
    done = run("status", "db1")
    assert done.exit_code == 1
    assert done.output.startswith("db1 on hv1, running: late\n")
    assert f"newest good point: {POINT}, 26 h old, a chain of 7 points" in done.output
    assert "No room.\n    Add.\n" in done.output
    assert (
        "newest good point: none (2 elsewhere, or not good)" in run("status", NEVER.domain).output
    )
    assert run("status", "web").exit_code == 0


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (FleetStatus(AT, FleetTotals(), (), ()), "No domain is known."),
        (FleetStatus(AT, FleetTotals(domains=6), (BARE,), ()), "`virtvault policy apply -f FILE`"),
        (
            FleetStatus(AT, FleetTotals(domains=1, fresh=1), (FRESH,), (), 1, "b"),
            "All is well: 1 protected domain is fresh.",
        ),
        (
            FleetStatus(AT, FleetTotals(2, 1, domains=1, fresh=1), (FRESH,), (), 1),
            "1 protected domain is fresh, but no beat leads: nothing is scheduled, and "
            "1 hypervisor is gone.",
        ),
    ],
)
def test_when_nothing_is_wrong(
    run: Command, answers: Answers, status: FleetStatus, said: str
) -> None:
    answers.status, answers.found = status, []
    done = run("status")
    assert done.exit_code == 0
    assert said in done.output
    assert ("All is well" in done.output) == ("All is well" in said)


def test_runs(run: Command, answers: Answers) -> None:
    done = run("runs", "hv1/db1", "--since", "2d", "--policy", "daily")
    assert (answers.asked["domain"], answers.asked["policy"]) == ("db1", "daily")
    assert answers.asked["since"] < "9999" and answers.asked["since"].endswith("Z")
    assert [line.split()[3] for line in done.output.splitlines()[1:3]] == ["failed", "running"]
    assert done.output.endswith("\ndb1: No room.\n  Add.\n")
    assert [r["task_id"] for r in json.loads(run("runs", "--json", "--failed").output)] == ["t1"]
    assert run("runs", "--since", "soon").exit_code == 2


def test_alerts(run: Command, answers: Answers) -> None:
    done = run("alerts")
    assert (done.exit_code, answers.asked) == (1, {"closed_since": ""})
    assert "  Hypervisor hv2 is gone.\n  Start it.\n" in done.output
    answers.found = [replace(GONE, closed=AT)]
    done = run("alerts", "--since", "24h")
    assert done.exit_code == 0
    assert "over since 2026-01-31 04:05:06 UTC" in done.output
    assert answers.asked["closed_since"]
    answers.found = []
    assert run("alerts").output == "No alerts.\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (93_600, "26 h"), (302_400, "3.5 d")],
)
def test_spans(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
