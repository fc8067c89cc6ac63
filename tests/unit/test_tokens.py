"""The file of the REST API's tokens: what is kept, who may, and what is refused."""

from __future__ import annotations

import json
import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from virtvault.cli import token
from virtvault.cli.main import cli
from virtvault.errors import InvalidRequest, InvalidSettings
from virtvault.tokens import ROLES, TokenFile

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "tokens.json"


def test_only_a_hash_is_kept_and_a_change_holds_at_once(path: Path) -> None:
    server, operator = TokenFile(path), TokenFile(path)
    assert server.find("vv_x", NOW) is None  # no file yet
    secret = operator.add("ci", "operator", NOW, 3600)
    assert secret.startswith("vv_")
    assert len(secret) == 3 + 43
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["tokens.json"]
    found = server.find(secret, NOW)
    assert found is not None
    assert (found.name, found.role, found.expires) == ("ci", "operator", "2026-11-23T13:00:00.000Z")
    assert server.find(secret, NOW + timedelta(seconds=3600)) is None
    assert server.find(secret[:-1], NOW) is None
    other = operator.add("wall", "viewer", NOW)
    assert server.find(other, NOW + timedelta(days=9999)) is not None
    operator.remove("ci")
    assert server.find(secret, NOW) is None
    assert server.find(other, NOW) is not None
    path.unlink()
    assert server.find(other, NOW) is None


def test_each_role_may_what_those_before_it_may(path: Path) -> None:
    file = TokenFile(path)
    for role in ROLES:
        file.add(role, role, NOW)
    assert {t.role: [role for role in ROLES if t.may(role)] for t in file.all()} == {
        "viewer": ["viewer"],
        "operator": ["viewer", "operator"],
        "restore": ["viewer", "operator", "restore"],
    }


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_that_others_can_reach_is_refused(path: Path, mode: int) -> None:
    file = TokenFile(path)
    secret = file.add("ci", "viewer", NOW)
    path.chmod(mode)
    for use in (lambda: file.find(secret, NOW), lambda: file.add("other", "viewer", NOW)):
        with pytest.raises(InvalidSettings, match=f"mode {mode:04o}") as caught:
            use()
        assert f"chmod 600 {path}" in caught.value.mend
    path.chmod(0o600)
    assert file.find(secret, NOW) is not None


def test_what_is_somebody_elses_or_no_file_of_tokens_is_refused(path: Path) -> None:
    file = TokenFile(path)
    secret = file.add("ci", "viewer", NOW)
    os.chown(path, 65534, -1)
    with pytest.raises(InvalidSettings, match="belongs to user 65534"):
        TokenFile(path).find(secret, NOW)
    os.chown(path, 0, -1)
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(InvalidSettings, match="cannot be opened"):
        file.find(secret, NOW)
    path.unlink()
    good = json.loads(elsewhere.read_text())["tokens"][0]
    for wrong in (
        "{",
        "[]",
        '{"tokens": [1]}',
        json.dumps({"tokens": [{**good, "role": "root"}]}),
        json.dumps({"tokens": [{**good, "more": 1}]}),
    ):
        path.write_text(wrong)
        path.chmod(0o600)
        with pytest.raises(InvalidSettings, match="is not a file of tokens"):
            file.find(secret, NOW)


def test_a_file_that_root_makes_for_another_user_is_that_users(path: Path) -> None:
    path.parent.mkdir()
    os.chown(path.parent, 65534, -1)
    file = TokenFile(path)
    file.add("ci", "viewer", NOW)
    file.add("more", "viewer", NOW)
    assert path.stat().st_uid == 65534
    assert len(file.all()) == 2


def test_who_add_at_once_lose_nothing(path: Path) -> None:
    def add(number: int) -> None:
        TokenFile(path).add(f"t{number}", "viewer", NOW)

    threads = [threading.Thread(target=add, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {t.name for t in TokenFile(path).all()} == {f"t{n}" for n in range(20)}


def test_names_are_said_once(path: Path) -> None:
    file = TokenFile(path)
    file.add("ci", "viewer", NOW)
    before = path.read_bytes()
    for name, said in (("ci", "already"), ("../x", "use letters"), ("", "use letters")):
        with pytest.raises(InvalidRequest, match=said):
            file.add(name, "restore", NOW)
    with pytest.raises(InvalidRequest, match="no token other") as caught:
        file.remove("other")
    assert caught.value.mend == "There are: ci."
    assert path.read_bytes() == before


def test_the_command_line(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTVAULT_CONFIG", str(tmp_path / "virtvault.toml"))
    (tmp_path / "virtvault.toml").write_text(f'state_dir = "{path.parent}"')

    def run(*arguments: str, code: int = 0) -> tuple[str, str]:
        done = CliRunner().invoke(cli, ["token", *arguments])
        assert done.exit_code == code, done.output
        return done.stdout, done.stderr

    assert token.ROLES == ROLES
    secret, said = run("add", "ci", "--role", "operator", "--expires", "90d")
    assert "only time" in said
    made = TokenFile(path).find(secret.strip(), datetime.now(UTC))
    assert made is not None
    lasts = datetime.fromisoformat(made.expires) - datetime.fromisoformat(made.created)
    assert lasts == timedelta(days=90)
    (listed,) = json.loads(run("list", "--json")[0])
    assert listed == {
        "name": "ci",
        "role": "operator",
        "created": made.created,
        "expires": made.expires,
    }
    for wrong in ("0", "soon"):
        assert "--expires" in run("add", "x", "--role", "viewer", "--expires", wrong, code=2)[1]
    assert run("remove", "ci")[0] == "Removed token ci (operator).\n"
    assert "No tokens" in run("list")[0]
    path.chmod(0o644)
    assert "chmod 600" in run("list", code=2)[1]
