"""The catalog is an index: thrown away, it is made anew; what it says of a point is so."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.flow import VIRTVAULT
from tests.integration.conftest import MIB
from tests.integration.scenes import give_new_content, until
from tests.lab import DiskSpec, Guest, Hypervisor, Stack
from virtvault import BackupResult, Client


@pytest.fixture
def stack(workdir: Path, hypervisor: Hypervisor) -> Iterator[Stack]:
    with Stack(workdir, libvirt_uri=hypervisor.uri) as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> Client:
    return stack.client()


@pytest.fixture
def guest(stack: Stack, boot: Callable[..., Guest]) -> Guest:
    return boot(DiskSpec("vda", "qcow2", 16 * MIB))


@pytest.fixture
def taken(client: Client, guest: Guest) -> list[BackupResult]:
    """A full and two incrementals, in the catalog, with how they are."""
    return [take(client, guest, value) for value in (1, 2, 3)]


def take(client: Client, guest: Guest, value: int) -> BackupResult:
    give_new_content(guest, value)
    result = client.backup(guest.name).wait(60)
    assert isinstance(result, BackupResult)
    until(lambda: result.point in states(client), "the point in the catalog")
    return result


def virtvault(stack: Stack, *arguments: str, code: int = 0) -> str:
    """One command by its exit code; what it printed on stdout and, without --json, on stderr."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VIRTVAULT_")}
    done = subprocess.run(
        [VIRTVAULT, *arguments],
        env={**environment, "VIRTVAULT_CONFIG": str(stack.config)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if "--json" in arguments else done.stdout + done.stderr


def document(stack: Stack, *arguments: str, code: int = 0) -> Any:
    return json.loads(virtvault(stack, *arguments, "--json", code=code))


def states(client: Client) -> dict[str, str]:
    """How the points that have a manifest are, where that was told."""
    listed = {point.id for point in client.points()}
    return {status.point: status.state for status in client.statuses() if status.point in listed}


def test_a_catalog_that_was_deleted_is_made_anew_from_the_manifests(
    stack: Stack, client: Client, taken: list[BackupResult]
) -> None:
    first, second, third = (result.point for result in taken)
    said = virtvault(stack, "protect", first, "--reason", "before the migration")
    assert said == f"point {first} is protected: before the migration\n"
    until(
        lambda: client.statuses()[0].protected == "before the migration",
        "the protection in the catalog",
    )
    before = document(stack, "points")
    assert [point["status"]["state"] for point in before] == ["ok"] * 3

    stack.stop("central", signal.SIGTERM)
    for path in stack.directory.glob("catalog.sqlite*"):
        path.unlink()
    stack.start("central")
    assert virtvault(stack, "points") == "No points.\n"
    (done,) = document(stack, "catalog", "rebuild")["repositories"]
    assert (done["points"], done["states"], done["unreadable"]) == (3, {"ok": 3}, [])
    assert document(stack, "points") == before

    # One altered, one of a newer version: skipped, named, and what stands on them is broken.
    paths = [stack.repository / taken[0].uuid / p / "manifest.json" for p in (second, third)]
    texts = [path.read_text() for path in paths]
    paths[0].write_text(texts[0][:-40])
    said = virtvault(stack, "catalog", "rebuild", code=1)
    assert "2 points of 1 domains (2 broken, 1 ok)" in said
    assert f"skipped: point {second} of domain {taken[0].uuid}" in said
    assert str(paths[0]) in said
    assert states(client) == {first: "ok", third: "broken"}
    listed = virtvault(stack, "points")
    assert "ok, protected" in next(line for line in listed.splitlines() if first in line)
    assert f"{second} in main is broken and not listed" in listed
    assert f"{third} in main is broken: needs point {second}" in listed
    refused = virtvault(stack, "restore", third, "--to", str(stack.directory / "out"), code=1)
    assert f"needs point {second}, which is not there or damaged" in refused
    assert not (stack.directory / "out").exists()

    paths[0].write_text(texts[0])
    newer = {**json.loads(texts[1]), "schema_version": 99}
    paths[1].write_text(json.dumps(newer))
    (done,) = document(stack, "catalog", "rebuild", code=1)["repositories"]
    (skipped,) = done["unreadable"]
    assert skipped["point"] == third
    assert "it is of version 99, and this virtvault reads up to" in skipped["why"]
    assert "upgrade virtvault" in virtvault(stack, "show", third, code=1)
    paths[1].write_text(texts[1])
    assert "broken" not in virtvault(stack, "points", "--check")
    assert document(stack, "points") == before


def test_a_chain_that_broke_is_seen_by_the_next_backup_and_mended_by_a_look(
    stack: Stack, client: Client, guest: Guest, taken: list[BackupResult]
) -> None:
    first, second, third = (result.point for result in taken)
    away = stack.repository / taken[0].uuid / second
    away.rename(stack.directory / "away")
    fourth = take(client, guest, 4)
    assert fourth.disks[0].sync == "full"
    until(lambda: states(client)[third] == "broken", "the state in the catalog")
    assert states(client) == {
        first: "ok",
        second: "broken",
        third: "broken",
        fourth.point: "ok",
    }
    listed = virtvault(stack, "points")
    assert f"{second} in main is broken: it was not there on 20" in listed
    (stack.directory / "away").rename(away)
    virtvault(stack, "points", "--check", guest.name)
    assert set(states(client).values()) == {"ok"}
    assert len(states(client)) == 4


def test_prune_asks_keeps_what_is_protected_and_says_of_a_point_that_it_was_pruned(
    stack: Stack, client: Client, guest: Guest, taken: list[BackupResult]
) -> None:
    first, second, third = (result.point for result in taken)
    virtvault(stack, "protect", first)
    rules = ("prune", guest.name, "--keep-last", "1")
    plan = document(stack, *rules, "--dry-run")
    assert {kept["point"] for kept in plan["kept"]} == {first, third}
    assert [removed["point"] for removed in plan["removed"]] == [second]
    said = virtvault(stack, *rules, code=1)  # nobody answers
    assert f"REMOVE  {second}" in said
    assert f"KEEP    {first}" in said
    assert "protected: protected by hand" in said
    assert "Remove 1 points" in said
    assert (stack.repository / taken[0].uuid / second).exists()

    virtvault(stack, *rules, "--yes")
    assert not (stack.repository / taken[0].uuid / second).exists()
    until(lambda: set(states(client)) == {first, third}, "the catalog to follow")
    for command in (("show", second), ("restore", second, "--to", str(stack.directory / "out"))):
        said = virtvault(stack, *command, code=2)
        assert f"error: Point {second} was pruned on 20" in said
    shown = virtvault(stack, "show", third)
    assert re.search(rf"^merged +{second}$", shown, re.M)
    virtvault(stack, "catalog", "rebuild")
    assert states(client) == {first: "ok", third: "ok"}
    fourth = take(client, guest, 5)
    assert fourth.disks[0].sync == "incremental"
    said = virtvault(stack, "merge", third, "--yes")
    assert re.search(rf"^REMOVED +{third} .* merged into {fourth.point}$", said, re.M)
    refused = virtvault(stack, "merge", first, "--yes", code=2)
    assert f"error: Point {first} is protected" in refused
    until(lambda: set(states(client)) == {first, fourth.point}, "the catalog to follow")
