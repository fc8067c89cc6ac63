"""A catalog's tables: made, brought from older versions, refused where they cannot be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from tasks.catalog import Catalog
from tasks.catalog.tables import Base
from tests.lab.stores import KINDS, Stores
from tests.unit.test_catalog import FIRST, REPOSITORY, SECOND, THIRD, UUID, now, point, status
from virtvault import schemas
from virtvault.errors import InvalidSettings, VirtvaultError

# As SQLAlchemy's create_all made them before there were migrations.
OLD_TABLES = """
CREATE TABLE points (id VARCHAR(40) NOT NULL, repository_id VARCHAR(8) NOT NULL,
 uuid VARCHAR(36) NOT NULL, domain VARCHAR(300) NOT NULL, host VARCHAR(100) NOT NULL,
 instant VARCHAR(30) NOT NULL, manifest TEXT NOT NULL, PRIMARY KEY (id, repository_id));
CREATE INDEX ix_points_uuid ON points (uuid);
CREATE INDEX ix_points_domain ON points (domain);
CREATE TABLE statuses (point VARCHAR(40) NOT NULL, repository_id VARCHAR(8) NOT NULL,
 uuid VARCHAR(36) NOT NULL, at VARCHAR(30) NOT NULL, status TEXT NOT NULL,
 PRIMARY KEY (point, repository_id));
CREATE INDEX ix_statuses_uuid ON statuses (uuid);
CREATE TABLE removed (id VARCHAR(40) NOT NULL, repository_id VARCHAR(8) NOT NULL,
 at VARCHAR(30) NOT NULL, PRIMARY KEY (id, repository_id));
CREATE TABLE runs (task_id VARCHAR(100) NOT NULL, task VARCHAR(100) NOT NULL,
 host VARCHAR(100) NOT NULL, state VARCHAR(20) NOT NULL, started VARCHAR(30) NOT NULL,
 finished VARCHAR(30) NOT NULL, request TEXT NOT NULL, error TEXT NOT NULL, mend TEXT NOT NULL,
 PRIMARY KEY (task_id));
"""
ALL_TABLES = ("points", "statuses", "removed", "runs")
# The very first version of them had these two alone.
FIRST_TABLES = ("points", "runs")


def made_before(
    url: str, tables: tuple[str, ...] = ("points", "statuses", "removed", "runs")
) -> None:
    """A database as it was before there were versions, with rows in it."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in OLD_TABLES.split(";"):
            words = statement.split()
            if words and (words[2] in tables or (words[4:5] and words[4] in tables)):
                connection.execute(sa.text(statement))
        for table, values in old_rows():
            if table in tables:
                names = ", ".join(f":{name}" for name in values)
                connection.execute(sa.text(f"INSERT INTO {table} VALUES ({names})"), values)
    engine.dispose()


def old_rows() -> list[tuple[str, dict[str, Any]]]:
    rows: list[tuple[str, dict[str, Any]]] = []
    for number, made in enumerate((point(FIRST), point(SECOND, FIRST))):
        of = {"id": made.id, "repository_id": REPOSITORY, "uuid": UUID, "domain": "web"}
        rest = {"host": "hv1", "instant": made.instant, "manifest": json.dumps(schemas.dump(made))}
        rows.append(("points", {**of, **rest}))
        rows.append(("runs", old_run(made.task_id, number, "complete", {"domain": "hv1/web"})))
    # What cannot be read stays, with nothing but its columns.
    odd = {"id": THIRD, "repository_id": "ffffffff", "uuid": UUID, "domain": "web", "host": "hv1"}
    rows.append(("points", {**odd, "instant": "2026", "manifest": f'{{"id": "{THIRD}"}}'}))
    rows.append(("runs", old_run("by-uuid", 3, "failed", {"domain": UUID})))
    rows.append(("runs", old_run("by-name", 4, "failed", {"domain": "web", "repository": "main"})))
    rows.append(("runs", old_run("restore", 5, "failed", {"point": FIRST}, "virtvault.restore")))
    state = json.dumps(schemas.dump(status(SECOND, "bad", why="x")))
    rows.append(
        (
            "statuses",
            {"point": SECOND, "of": REPOSITORY, "uuid": UUID, "at": now(1), "status": state},
        )
    )
    rows.append(("removed", {"id": THIRD, "repository_id": REPOSITORY, "at": now(1)}))
    return rows


def old_run(
    task_id: str, minute: int, state: str, request: dict[str, Any], task: str = "virtvault.backup"
) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "task": task,
        "host": "hv1",
        "state": state,
        "started": now(minute),
        "finished": now(minute + 1),
        "request": json.dumps(request),
        "error": "" if state == "complete" else "it failed",
        "mend": "",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_catalog_without_versions_becomes_todays_and_loses_nothing(
    stores: Stores, kind: str
) -> None:
    url = stores.empty(kind)
    made_before(url)
    catalog = stores.open(url)
    assert catalog.points() == [
        {"id": THIRD},
        schemas.dump(point(FIRST)),
        schemas.dump(point(SECOND, FIRST)),
    ]
    assert catalog.fate(SECOND)["status"]["state"] == "bad"
    assert catalog.fate(THIRD)["removed"] == now(1)
    # SECOND is bad: FIRST is the newest good one.
    newest = {n.repository_id: n for n in catalog.newest()}
    assert (newest[REPOSITORY].point, newest[REPOSITORY].points) == (FIRST, 2)
    assert newest[REPOSITORY].stored == 2 * 2**20
    assert newest["ffffffff"].point == THIRD
    runs = {run.task_id: run for run in catalog.runs()}
    assert len(runs) == 5
    second = runs[f"task-{SECOND}"]
    assert (second.point, second.sync, second.uuid) == (SECOND, "incremental", UUID)
    assert (second.stored, second.seconds, second.repository) == (2**20, 60.0, "main")
    assert {(run.domain, run.uuid) for run in runs.values() if run.kind == "backup"} == {
        ("web", UUID)
    }
    assert (runs["restore"].kind, runs["restore"].point) == ("restore", FIRST)
    assert runs["by-name"].error == "it failed"
    assert catalog.last_runs()[UUID].task_id == "by-name"
    assert differences(url) == []
    # The late record of a run that was told before its migration changes nothing of it.
    catalog.record_run({**old_run("by-uuid", 3, "failed", {}), "request": {"domain": UUID}})
    assert len(catalog.runs()) == 5


def differences(url: str) -> list[Any]:
    """What Alembic would change to make the tables those of this version; length apart."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found: list[Any] = compare_metadata(
            MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata
        )
    engine.dispose()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_migration_that_is_killed_has_changed_nothing(
    stores: Stores, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = stores.empty(kind)
    made_before(url)
    before = tables(url)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Catalog, "_derive", killed)
        Catalog(url)
    assert tables(url) == before
    assert len(stores.open(url).runs()) == 5


def tables(url: str) -> dict[str, list[str]]:
    engine = sa.create_engine(url)
    look = sa.inspect(engine)
    found = {
        name: [column["name"] for column in look.get_columns(name)]
        for name in look.get_table_names()
    }
    engine.dispose()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_two_central_workers_that_start_at_once_migrate_once(stores: Stores, kind: str) -> None:
    url = stores.empty(kind)
    made_before(url, FIRST_TABLES)
    # Both wait for the word, so that neither is done before the other has begun.
    code = "import sys; from tasks.catalog import Catalog; print('ready', flush=True); " + (
        "input(); print(len(Catalog(sys.argv[1]).runs()))"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        out, err = process.communicate(timeout=60)
        assert (out, process.returncode) == ("5\n", 0), err


@pytest.mark.parametrize("kind", KINDS)
def test_a_newer_catalog_is_refused(stores: Stores, kind: str) -> None:
    catalog = stores.catalog(kind)
    with catalog._writing() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(InvalidSettings) as refused:
        Catalog(catalog._engine.url.render_as_string(hide_password=False))
    assert "version 9999" in refused.value.message
    assert "Upgrade virtvault" in refused.value.mend


UNUSABLE = {
    "no URL": ("nonsense", 2, "is no database URL"),
    "another database": ("mysql://u:secret@h/d", 2, "cannot be in mysql"),
    "no driver": ("postgresql+nosuch://u:secret@h/d", 2, "no driver"),
    "no directory": ("sqlite:////nonexistent/catalog.sqlite", 3, "unable to open"),
    "no server": ("postgresql+psycopg://u:secret@/d?host=/nonexistent", 3, "does not answer"),
    "no database": ("sqlite:///{here}/text", 2, "not a database"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_catalog_that_cannot_be_opened_is_said_with_its_mend(tmp_path: Path, what: str) -> None:
    url, code, words = UNUSABLE[what]
    (tmp_path / "text").write_text("This is no database, and it is long enough to be told. " * 9)
    with pytest.raises(VirtvaultError, match=words) as said:
        Catalog(url.format(here=tmp_path))
    assert said.value.exit_code == code
    assert said.value.mend
    assert "secret" not in str(said.value)


def test_a_postgresql_role_that_may_not_make_tables_is_told(stores: Stores) -> None:
    url = stores.empty("postgres")
    with stores.server.connect() as connection:
        connection.execute("DROP ROLE IF EXISTS reader")
        connection.execute("CREATE ROLE reader LOGIN")
    with pytest.raises(InvalidSettings, match="permission denied") as said:
        Catalog(url.replace("//postgres@", "//reader@"))
    assert "docs/catalog.md" in said.value.mend


def test_the_central_role_ends_with_a_sentence_where_its_catalog_does_not_answer() -> None:
    environment = {
        **os.environ,
        "VIRTVAULT_CATALOG_URL": "postgresql+psycopg://u:secret@/d?host=/nonexistent",
        "VIRTVAULT_BROKER_URL": "redis+socket:///nonexistent/redis.sock",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tasks.role", "central"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "does not answer" in done.stderr
    assert "secret" not in done.stderr
