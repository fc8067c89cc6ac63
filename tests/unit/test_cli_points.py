"""The commands on stored points against a fake client: states, prune, protect, rebuild."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.unit.test_cli import A_POINT, POINT, TASK, UUID, FakeClient, FakeHandle, document
from virtvault import client
from virtvault.cli.main import cli
from virtvault.models import KeptPoint, PointStatus, PruneResult, RemovedPoint, RetentionRules
from virtvault.stored import Rebuilt, RebuiltRepository, Unreadable

OLDER, OLDEST, IN_USE = (f"202601{day}T040506Z-0123abcd" for day in (30, 29, 28))
PLAN = PruneResult(
    task_id=TASK,
    host="hv1",
    repository="local",
    state="complete",
    dry_run=True,
    started="2026-01-31T04:05:05.000Z",
    finished="2026-01-31T04:05:06.000Z",
    kept=(KeptPoint(POINT, "[web]", ("last 1 of 1", "daily 1 of 7 (2026-01-31)")),),
    removed=(
        RemovedPoint(OLDER, "[web]", (POINT,), 2**20),
        RemovedPoint(OLDEST, "[web]", (), 2**30),
    ),
    postponed={IN_USE: "it is being read by task 7"},
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeClient]:
    config = tmp_path / "virtvault.toml"
    config.write_text('host = "hv1"\n')
    monkeypatch.setenv("VIRTVAULT_CONFIG", str(config))
    made = type("Fake", (FakeClient,), {"answers": {}, "asked": []})
    monkeypatch.setattr(client, "Client", made)
    return made


def run(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(cli, arguments, input=answer)


def lines(result: Result) -> dict[str, list[str]]:
    """A table's lines by their first word, as cells."""
    cells = [[c.strip() for c in line.split("  ") if c] for line in result.stdout.splitlines()]
    return {line[0]: line for line in cells if line}


# -- states ---------------------------------------------------------------------------------------


def test_points_says_of_each_how_it_is_and_why(fake: type[FakeClient]) -> None:
    ids = [f"20260131T04050{n}Z-0123abcd" for n in range(6)]

    def status(number: int, state: str, **more: str) -> PointStatus:
        return PointStatus(ids[number], "local", "0123abcd", UUID, state, **more)

    fake.answers["points"] = [replace(A_POINT, id=id_) for id_ in ids[:5]]
    fake.answers["statuses"] = [
        status(0, "ok"),
        status(1, "ok", verdict="good", protected="handed to the auditors"),
        status(2, "bad", why="vda differs at 1 MiB"),
        status(3, "broken", why=f"needs point {ids[2]}, found bad"),
        status(5, "broken", why="its seal does not fit"),
    ]
    result = run("points")
    table = lines(result)
    assert table["POINT"][6] == "STATE"
    assert [table[id_][6] for id_ in ids[:5]] == [
        *("ok", "verified good, protected", "bad", "broken", "unknown")
    ]
    assert f"\n{ids[2]} in local is bad: vda differs at 1 MiB\n" in result.stdout
    assert f"\n{ids[3]} in local is broken: needs point {ids[2]}, found bad\n" in result.stdout
    not_listed = f"{ids[5]} in local is broken and not listed, of domain {UUID}: its seal"
    assert f"\n{not_listed} does not fit\n" in result.stdout

    as_json = run("points", "--json")
    found = document(as_json)
    assert [point["id"] for point in found] == ids[:5]
    assert found[1]["status"]["protected"] == "handed to the auditors"
    assert found[4]["status"] is None
    assert not_listed in as_json.stderr
    assert [name for name, *_ in fake.asked] == ["points", "statuses"] * 2


def test_points_looks_first_where_it_is_told_to(fake: type[FakeClient]) -> None:
    fake.answers.update(points=[], statuses=[], rebuild=Rebuilt((), {"hv1/nfs": "not mounted."}))
    result = run("points", "web", "--check")
    assert fake.asked[0] == ("rebuild", (), {"domain": "web"})
    assert "not looked at: hv1/nfs: not mounted." in result.stderr


def test_show_says_how_the_point_is_now(fake: type[FakeClient]) -> None:
    status = PointStatus(
        POINT, "local", "0123abcd", UUID, "bad", "vda differs", "bad", A_POINT.instant, "asked for"
    )
    fake.answers.update(show=replace(A_POINT, merged=(OLDER,)), status=status)
    shown = lines(run("show", POINT))
    assert shown["state"][1] == "bad, protected: vda differs"
    assert shown["verified"][1] == "bad, 2026-01-31 04:05:06 UTC"
    assert shown["protected"][1] == "asked for"
    assert shown["merged"][1] == OLDER
    assert document(run("show", POINT, "--json"))["status"]["state"] == "bad"


# -- prune ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "code", "asked"), [("y\n", 0, 2), ("n\n", 1, 1), ("", 1, 1)])
def test_prune_shows_what_would_go_and_asks(
    fake: type[FakeClient], answer: str, code: int, asked: int
) -> None:
    fake.answers["prune"] = FakeHandle(PLAN)
    rules = ("--keep-last", "1", "--keep-weekly", "4", "--keep-within", "2w")
    result = run("prune", "web", *rules, "--repository", "local", answer=answer)
    assert result.exit_code == code
    table = [line.split() for line in result.stdout.splitlines()]
    assert [line[:2] for line in table if line and line[0] in ("KEEP", "REMOVE", "POSTPONED")] == [
        ["KEEP", POINT],
        ["REMOVE", OLDER],
        ["REMOVE", OLDEST],
        ["POSTPONED", IN_USE],
    ] * asked
    assert "last 1 of 1; daily 1 of 7 (2026-01-31)" in result.stdout
    assert f" merged into {POINT}" in result.stdout
    assert "1.0 GiB, no kept point needs it" in result.stdout
    assert "it is being read by task 7" in result.stdout
    assert "Remove 2 points (1.0 GiB)? [y/N]" in result.stdout
    options = {
        "host": "",
        "repository": "local",
        "domain": "web",
        "rules": RetentionRules(last=1, weekly=4, within=14 * 86400),
        "speed": 0,
    }
    expected = [("prune", (), {**options, "dry_run": dry}) for dry in (True, False)]
    assert fake.asked == expected[:asked]


def test_prune_that_removes_nothing_asks_nothing(fake: type[FakeClient]) -> None:
    fake.answers["prune"] = FakeHandle(replace(PLAN, removed=(), postponed={}))
    result = run("prune", "--keep-last", "1")
    assert result.exit_code == 0
    assert "1 point kept, 0 points would be removed (0 B)" in result.stdout
    assert len(fake.asked) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--keep-last", "0"),
        ("--keep-last", "-1"),
        ("--keep-within", "14"),
        ("--keep-within", "0d"),
        ("--keep-last", "1", "--json"),
        ("--keep-last", "1", "--detach"),
    ],
)
def test_a_prune_that_is_not_clear_is_wrong_usage(
    fake: type[FakeClient], arguments: tuple[str, ...]
) -> None:
    result = run("prune", *arguments)
    assert (result.exit_code, fake.asked) == (2, [])
    assert "error: " in result.stderr


def test_merge_removes_one_point(fake: type[FakeClient]) -> None:
    fake.answers["prune"] = FakeHandle(replace(PLAN, dry_run=False))
    result = run("merge", OLDER, "--yes", "--json")
    assert document(result)["removed"][0]["into"] == [POINT]
    options: dict[str, Any] = {"host": "", "points": (OLDER,), "speed": 0, "dry_run": False}
    assert fake.asked == [("prune", (), options)]
    assert "REMOVED" in run("merge", OLDER, "--yes").stdout


# -- protect, rebuild -----------------------------------------------------------------------------


def test_protect_and_unprotect(fake: type[FakeClient]) -> None:
    status = PointStatus(POINT, "local", "0123abcd", UUID, protected="asked for")
    fake.answers.update(protect=status, unprotect=replace(status, protected=""))
    assert "is protected: asked for" in run("protect", POINT, "--reason", "asked for").stdout
    assert document(run("unprotect", POINT, "--json"))["protected"] == ""
    assert fake.asked == [
        ("protect", (POINT, "asked for"), {"host": ""}),
        ("unprotect", (POINT,), {"host": ""}),
    ]


def test_rebuild_says_what_it_read_and_what_not(fake: type[FakeClient]) -> None:
    one = RebuiltRepository("local", "0123abcd", "hv1", 1, 2, {"ok": 1, "broken": 2})
    fake.answers["rebuild"] = Rebuilt((one,), {})
    result = run("catalog", "rebuild", "--repository", "local")
    assert result.exit_code == 0
    assert result.stdout == (
        "repository local (0123abcd), read by hv1: 2 points of 1 domains (2 broken, 1 ok)\n"
    )
    assert fake.asked == [("rebuild", ("local",), {})]

    bad = replace(one, gone=(OLDEST,), unreadable=(Unreadable(OLDER, UUID, "/r/m.json: cut off"),))
    fake.answers["rebuild"] = Rebuilt((bad,), {"hv2/nfs": "not mounted."})
    result = run("catalog", "rebuild")
    assert result.exit_code == 1
    assert f"gone: {OLDEST} was in the catalog" in result.stdout
    assert f"skipped: point {OLDER} of domain {UUID}: /r/m.json: cut off\n" in result.stdout
    assert "not read: hv2/nfs: not mounted.\n" in result.stdout
    result = run("catalog", "rebuild", "--json")
    assert result.exit_code == 1
    assert document(result)["repositories"][0]["unreadable"][0]["point"] == OLDER
    assert document(result)["unread"] == {"hv2/nfs": "not mounted."}
