"""The example settings file names every setting there is, with its true default."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from virtvault.settings import NotifySettings, RepositorySettings, Settings, load

EXAMPLE = Path(__file__).parents[2] / "deploy" / "virtvault.toml.example"
# A setting is "#key = value" or "#[table]", without the space a sentence has.
SETTING = re.compile(r"^#(?=\[|[a-z_]+ = )", re.MULTILINE)


@pytest.fixture
def in_force(tmp_path: Path) -> Settings:
    """What the file says once every setting in it is in force."""
    path = tmp_path / "virtvault.toml"
    path.write_text(SETTING.sub("", EXAMPLE.read_text()))
    return load(path, environ={})


def test_as_delivered_it_changes_nothing() -> None:
    assert load(EXAMPLE, environ={}) == Settings()


def test_every_setting_is_mentioned_once() -> None:
    text = EXAMPLE.read_text()
    for name in (field.name for field in (*fields(Settings), *fields(NotifySettings))):
        tables = {"repositories": r"^#\[repositories\.", "notify": r"^#\[notify\]"}
        wanted = tables.get(name, rf"^#{name} = ")
        assert len(re.findall(wanted, text, re.MULTILINE)) == 1, name


@pytest.mark.parametrize(
    "name", [f.name for f in fields(Settings) if f.name not in ("host", "repositories")]
)
def test_its_values_are_the_defaults(name: str, in_force: Settings) -> None:
    assert getattr(in_force, name) == getattr(Settings(), name)


def test_its_examples_are_valid(in_force: Settings) -> None:
    assert in_force.host == "hv1"
    assert in_force.repositories == {"main": RepositorySettings("main", "/srv/backups")}
