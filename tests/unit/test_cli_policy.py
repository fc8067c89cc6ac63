"""``virtvault policy`` against a fake client: what is shown, where, and the exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.unit.test_cli import FakeClient, document
from virtvault import client, policy_file
from virtvault.cli.main import cli
from virtvault.errors import NotReachable
from virtvault.models import MatchedDomain, PlannedRun, PolicyVersion, Preview

OLD = """\
policies:
- {name: web, select: {names: ["web-*"]}, schedule: {cron: "0 2 * * *"}, rpo: 26h}
- {name: old, select: {hosts: [hv-1], labels: {tier: gold}}, schedule: {every: 6h}}
"""
NEW = """\
limits: {per_host: 2}
policies:
- {name: web, select: {names: ["web-*"]}, schedule: {cron: "0 3 * * *"}, rpo: 25h}
- {name: new, select: {names: ["*"]}, schedule: {every: 6h}, retention: {daily: 7}}
"""
AT = "2026-06-01T12:30:00.000Z"
BEFORE = PolicyVersion(3, AT, "me@here", "why", 2, OLD, policy_file.read(OLD, "f"))
POINTS = [f"2026060{n}T040506Z-0123abcd" for n in range(1, 4)]
AHEAD = Preview(
    at=AT,
    hours=2,
    domains=(
        MatchedDomain(
            *("[web-1]", "u1", "hv-1", ("web",), {"new": "policy web holds"}),
            kept={POINTS[2]: ("newest", "daily 1 of 7")},
            removed={POINTS[0]: ("no rule wants it",)},
        ),
    ),
    unprotected=tuple(f"hv-2/db-{n}" for n in range(12)),
    runs=(PlannedRun(AT, AT, "backup", "web", "[web-1]", "u1", "hv-1", ""),),
    total_runs=41,
    warnings=("policy web is odd",),
    per_hour={"backup": (1, 20), "boot_test": (0, 20)},
    protected=5,
    gains=("hv-1/web-1",),
    loses=("hv-2/db-0", "hv-2/db-1"),
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeClient]:
    config = tmp_path / "virtvault.toml"
    config.write_text('host = "hv1"\n')
    monkeypatch.setenv("VIRTVAULT_CONFIG", str(config))
    answers = {
        **{"policies": BEFORE, "preview": AHEAD},
        "apply_policies": PolicyVersion(4, AT, policies=2),
        "policy_versions": [PolicyVersion(4, AT, "you@there", "later", 1), BEFORE],
    }
    made = type("Fake", (FakeClient,), {"answers": answers, "asked": []})
    monkeypatch.setattr(client, "Client", made)
    return made


def run(*arguments: str, text: str | bytes = "") -> Result:
    return CliRunner().invoke(cli, ["policy", *arguments], input=text)


def asked(fake: type[FakeClient]) -> list[str]:
    return [name for name, *_ in fake.asked]


def test_apply_says_what_changes_and_warns_of_what_is_lost(fake: type[FakeClient]) -> None:
    done = run("apply", "-f", "-", "--comment", "so", text=NEW)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "  + new",
        "  ~ web: schedule, rpo",
        "  - old",
        "  ~ limits over all policies",
        "protected: 5 domains (1 more, 2 no longer); unprotected: 12",
        "version 4 is in force",
    ]
    assert done.stderr.splitlines() == [
        "warning: protection is LOST by 2 domains: hv-2/db-0, hv-2/db-1",
        "warning: policy web is odd",
    ]
    name, arguments, named = fake.asked[-1]
    assert (name, arguments) == ("apply_policies", (policy_file.read(NEW, "f"), NEW))
    assert named["comment"] == "so"
    assert "@" in named["by"]


def test_a_dry_run_applies_nothing(fake: type[FakeClient], tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(NEW)
    done = run("apply", "-f", str(path), "--dry-run", "--json")
    assert asked(fake) == ["policies", "preview"]
    said = document(done)
    assert (said["dry_run"], said["version"], said["new_version"]) == (True, 3, False)
    assert (said["added"], said["removed"], said["loses"]) == (
        *(["new"], ["old"]),
        ["hv-2/db-0", "hv-2/db-1"],
    )
    assert said["edited"] == {"web": ["schedule", "rpo"]}
    assert "LOST" in done.stderr
    assert "nothing was changed: version 3 stays" in run(
        "apply", "-f", "-", "--dry-run"
    ).stderr or (
        "nothing was changed: version 3 stays" in run("apply", "-f", str(path), "--dry-run").stdout
    )


def test_policies_are_applied_where_their_effect_cannot_be_told(fake: type[FakeClient]) -> None:
    fake.answers["preview"] = NotReachable("No answer within 10 s.", "Wait.")
    done = run("apply", "-f", "-", text=OLD)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == ["  no policy changes", "version 4 is in force"]
    assert "which domains gain or lose protection is not known: No answer" in done.stderr
    assert run("apply", "-f", "-", "--dry-run", text=OLD).exit_code == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NEW.replace("every:", "evry:"), "stdin:4: policies[1].schedule.evry: unknown field; did"),
        (b"policies: []\n# caf\xe9\n", "stdin:2: is not UTF-8 text."),
    ],
)
def test_a_bad_file_is_refused_before_anybody_is_asked(
    fake: type[FakeClient], text: str | bytes, said: str
) -> None:
    refused = run("apply", "-f", "-", text=text)
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert not fake.asked
    missing = run("preview", "-f", "/nowhere/p.yaml")
    assert (missing.exit_code, asked(fake)) == (2, [])
    assert "/nowhere/p.yaml: No such file" in missing.stderr


def test_delete_applies_the_file_without_it(fake: type[FakeClient]) -> None:
    done = run("delete", "old")
    assert done.exit_code == 0, done.output
    assert "  - old\n" in done.stdout
    name, (applied, text), named = fake.asked[-1]
    assert (name, named["comment"]) == ("apply_policies", "without old")
    assert text == "".join(OLD.splitlines(keepends=True)[:2])
    assert [policy.name for policy in applied.policies] == ["web"]
    fake.asked.clear()
    assert run("delete", "gold").exit_code == 2
    assert asked(fake) == ["policies"]


def test_list_show_export_and_history(fake: type[FakeClient]) -> None:
    rows = [line.split("  ") for line in run("list").stdout.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[1] == [
        *("web", "web-*", "0 2 * * * UTC", "1d2h", "all", "(default)", "0"),
        "enabled",
    ]
    assert cells[2][1:3] == ["on hv-1, tier=gold", "every 6h"]
    shown = run("show", "web").stdout
    assert shown.startswith("web\n")
    assert "  rpo         1d2h\n" in shown
    assert "  if late     run it all the same\n" in shown
    assert run("show", "nobody").exit_code == 2
    assert document(run("show", "web", "--json"))["rpo"] == 26 * 3600
    assert run("export", "--version", "3").stdout_bytes == OLD.encode()
    assert fake.asked[-1][1] == (3,)
    assert run("history").stdout.splitlines()[1].split() == [
        *("4", "2026-06-01", "12:30:00", "UTC", "you@there", "1", "later")
    ]


def test_a_preview_is_readable_in_a_terminal_and_plain_in_a_pipe(fake: type[FakeClient]) -> None:
    done = run("preview", "--hours", "2", "--points", "--domain", "web-1")
    assert done.exit_code == 0, done.output
    assert fake.asked == [("preview", (None,), {"hours": 2, "limit": 100, "domain": "web-1"})]
    lines = done.stdout.splitlines()
    assert lines[1].split() == ["[web-1]", "hv-1", "web", "new", "1", "1"]
    assert "… and 4 more" in lines
    assert f"hv-1/[web-1]: keep {POINTS[2]}: newest; daily 1 of 7" in lines
    assert f"hv-1/[web-1]: remove {POINTS[0]}: no rule wants it" in lines
    assert any(
        line.startswith("Unprotected: hv-2/db-0, ") and line.endswith("and 2 more")
        for line in lines
    )
    assert "The next 2 h from 2026-06-01 12:30:00 UTC: 41 runs" in lines
    bars = [line.split() for line in lines if "█" in line]
    assert [(bar[1], bar[2], len(bar[3])) for bar in bars] == [
        ("12:30", "1", 1),
        ("13:30", "40", 40),
    ]
    assert bars[1][4:] == ["20", "backup,", "20", "boot", "test"]
    assert "… and 40 more (--limit)" in lines
    assert done.stderr == "warning: policy web is odd\n"
    as_json: Any = document(run("preview", "-f", "-", "--json", text=NEW))
    assert as_json["total_runs"] == 41
    assert fake.asked[-1][1] == (policy_file.read(NEW, "f"),)
