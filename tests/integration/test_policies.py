"""Policies from the command line through Redis to the catalog and back, and the copy beat reads."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from beat.questions import publish
from tasks.catalog import Catalog
from tests.lab.stack import Stack
from virtvault import Client, policy_file, queues, runs, schemas
from virtvault.cli.main import cli
from virtvault.errors import InvalidRequest
from virtvault.models import DomainInfo, Inventory, PolicyVersion, RepositoryInfo
from virtvault.settings import Settings

TEXT = """\
# Ours. Accents stay: é
policies:
  - name: web   # the shop
    select: {names: ["web-*"]}
    schedule: {cron: "0 2 * * *", timezone: Europe/Vienna}
    retention: {daily: 7}

  # All the rest.
  - name: rest
    select: {names: ["*"]}
    schedule: {every: 6h}
    repository: far
"""
UUIDS = [f"00000000-0000-0000-0000-00000000000{n}" for n in range(3)]
DOMAINS = tuple(
    DomainInfo(name, uuid, "hv-1", "running", targets=("vda",))
    for name, uuid in zip(("web-1", "web-2", "db"), UUIDS, strict=True)
)
INVENTORY = Inventory(
    "hv-1", "2026-01-01T00:00:00.000Z", {}, (RepositoryInfo("main", "0a1b2c3d"),), DOMAINS, "main"
)


@pytest.fixture(scope="module")
def central(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("central"), control_timeout=60)
    try:
        stack.redis.start()
        stack.start("central")
        yield stack
    finally:
        stack.__exit__(None, None, None)


@pytest.fixture
def client(central: Stack) -> Client:
    return central.client()


def policy(stack: Stack, *arguments: str, text: str = "") -> Result:
    command = ["--config", str(stack.config), "policy", *arguments]
    return CliRunner().invoke(cli, command, input=text)


def in_redis(client: Client) -> PolicyVersion:
    raw = client.redis.get(queues.POLICIES_KEY)
    assert isinstance(raw, bytes)
    return schemas.load(PolicyVersion, json.loads(raw))


def test_policies_are_applied_versioned_looked_ahead_with_and_deleted(
    central: Stack, client: Client
) -> None:
    record = {"inventory": schemas.dump(INVENTORY)}
    client._question(queues.CENTRAL, queues.RECORD, record)
    assert client.policies().number == 0
    assert policy(central, "list").stdout == "No policies.\n"

    looked = policy(central, "apply", "-f", "-", "--dry-run", text=TEXT)
    assert looked.exit_code == 0, looked.output
    assert "  + web\n  + rest\nprotected: 3 domains (3 more, 0 no longer); unprotected: 0\n" in (
        looked.stdout
    )
    assert client.policy_versions() == []

    done = policy(central, "apply", "-f", "-", "--comment", "begin", text=TEXT)
    assert "version 1 is in force" in done.stdout
    assert "policy rest: hypervisor hv-1 has no repository far: the backups of 3" in done.stderr
    assert policy(central, "export").stdout_bytes == TEXT.encode()
    assert in_redis(client) == schemas.load(
        PolicyVersion, {**schemas.dump(client.policies()), "text": ""}
    )
    again = policy(central, "apply", "-f", "-", "--json", text=TEXT)
    assert json.loads(again.stdout)["new_version"] is False

    # Of three domains two are protected by `web` alone once `rest` is gone.
    gone = policy(central, "delete", "rest")
    assert "protected: 2 domains (0 more, 1 no longer); unprotected: 1" in gone.stdout
    assert "protection is LOST by 1 domain: hv-1/db" in gone.stderr
    assert policy(central, "export").stdout == TEXT[: TEXT.index("\n  # All the rest.")]
    assert [(v.number, v.comment) for v in client.policy_versions()] == [
        (2, "without rest"),
        (1, "begin"),
    ]
    assert policy(central, "export", "--version", "1").stdout_bytes == TEXT.encode()

    ahead = client.preview(hours=24)
    assert [one.domain for one in ahead.domains] == ["web-1", "web-2"]
    assert ahead.unprotected == ("hv-1/db",)
    assert ahead.per_hour.keys() == {"backup", "prune"}
    assert ahead.total_runs == len(ahead.runs) == 4
    of_one = client.preview(hours=24, domain="hv-1/web-2")
    assert {run.domain for run in of_one.runs} == {"web-2"}
    shown = policy(central, "preview", "--domain", "web-2")
    assert shown.exit_code == 0, shown.output
    assert "2 runs" in shown.stdout


def test_what_cannot_hold_is_refused_and_changes_nothing(central: Stack, client: Client) -> None:
    before = client.policies()
    bad = TEXT.replace("cron:", "corn:").replace("6h", "6 hours")
    refused = policy(central, "apply", "-f", "-", text=bad)
    assert refused.exit_code == 2
    assert "stdin:5: policies[0].schedule.corn: unknown field; did you mean cron?" in refused.stderr
    assert "stdin:11: policies[1].schedule.every: must be a duration" in refused.stderr
    document = policy_file.read(TEXT, "text")
    with pytest.raises(InvalidRequest, match="does not say what the policies sent with it do"):
        client.apply_policies(document, TEXT.replace("daily: 7", "daily: 8"))
    with pytest.raises(InvalidRequest, match="There is no version 99"):
        client.policies(99)
    assert policy(central, "delete", "gold").exit_code == 2
    assert client.policies() == before


def test_after_a_flush_of_redis_a_beat_that_asks_finds_the_policies_again(
    client: Client,
) -> None:
    client.apply_policies(policy_file.read(TEXT, "text"), TEXT)
    before = in_redis(client)
    client.redis.flushall()
    assert client._question(queues.CENTRAL, queues.SCHEDULE_STATE) == {}
    assert in_redis(client) == before


def test_redis_ends_with_what_the_catalog_has_whoever_comes_late(
    central: Stack, tmp_path: Path
) -> None:
    redis = runs.connect(Settings(broker_url=central.redis.url))
    catalog = Catalog(f"sqlite:///{tmp_path}/catalog.sqlite")

    def apply(name: str) -> int:
        text = TEXT.replace("name: web", f"name: {name}")
        document = policy_file.read(text, "text")
        return catalog.apply_policies(document, text, "me", "", "2026-01-01T00:00:00.000Z").number

    def published() -> int:
        raw = redis.get(queues.POLICIES_KEY)
        assert isinstance(raw, bytes)
        return int(json.loads(raw)["number"])

    apply("first")

    class Slow(Catalog):
        """Another central publishes a newer version after this one has read its own."""

        def policies(self, number: int = 0) -> PolicyVersion | None:
            read = super().policies(number)
            if read is not None and read.number == 1:
                apply("second")
                publish(catalog, redis)
                assert published() == 2
            return read

    publish(Slow(f"sqlite:///{tmp_path}/catalog.sqlite"), redis)
    assert published() == 2
    # A catalog that was brought back from a backup of it is right, too.
    older = Catalog(f"sqlite:///{tmp_path}/older.sqlite")
    publish(older, redis)
    assert published() == 0
    threads = [threading.Thread(target=publish, args=(catalog, redis)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert published() == 2
    redis.close()


def test_the_example_of_redis_users_lets_a_service_ask_and_clear_away_its_answer(
    central: Stack,
) -> None:
    users = Path(__file__).parents[2] / "deploy" / "redis" / "users.acl.example"
    (line,) = [one for one in users.read_text().splitlines() if one.startswith("user service ")]
    _, name, *rules = re.findall(r"\([^)]*\)|\S+", line)
    answer = "celery-task-meta-00000000-0000-0000-0000-000000000000"
    with central.redis.client() as admin:
        admin.execute_command("ACL", "SETUSER", name, *rules)
        for command in (("LPUSH", queues.CENTRAL, "x"), ("GET", answer), ("DEL", answer)):
            assert admin.execute_command("ACL", "DRYRUN", name, *command) == b"OK", command
        refused = admin.execute_command("ACL", "DRYRUN", name, "DEL", queues.POLICIES_KEY)
        assert b"no permissions" in refused
        admin.execute_command("ACL", "DELUSER", name)
