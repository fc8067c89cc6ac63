"""The real QEMU of this machine answers as it was recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.conftest import MIB
from tests.lab import DiskSpec, Guest
from virtvault.settings import Settings
from workers.capabilities import Capabilities, decide, probe
from workers.engine import Engine
from workers.monitor import Monitor
from workers.qmp_schema import Schema
from workers.storage_daemon import StorageDaemon

REPLIES = Path(__file__).parents[1] / "unit" / "qemu_replies" / "7.2.22.json"


@pytest.fixture
def daemon(workdir: Path) -> Iterator[Monitor]:
    """A storage daemon of the test's own."""
    process = StorageDaemon(workdir / "daemon")
    process.start()
    monitor = process.monitor(10.0)
    yield monitor
    monitor.close()
    process.end()


def recorded(like: Capabilities, as_of: tuple[int, int] | None = None) -> Capabilities:
    """What the recorded 7.2 can do, under the version of the QEMU that is here."""
    if like.version[:2] != (7, 2):
        pytest.skip(f"the QEMU here is {like.version}, the recording is of 7.2")
    replies = json.loads(REPLIES.read_text())
    commands = [command["name"] for command in replies["query-commands"]]
    return decide(like.version, commands, replies["query-qmp-schema"], as_of)


def test_a_storage_daemon_can_do_what_was_recorded(daemon: Monitor) -> None:
    found = probe(daemon)
    assert found == recorded(found)
    assert found.isolation and found.notes == ()


def test_a_running_domain_can_do_what_was_recorded(
    engine: Engine, boot: Callable[..., Guest]
) -> None:
    guest = boot(DiskSpec("vda", "qcow2", 16 * MIB))
    found = engine.hypervisor.monitor(engine.hypervisor.domain(guest.name)).capabilities
    assert found == recorded(found)


def test_the_setting_makes_a_domain_do_with_what_an_older_qemu_has(
    settings: Settings, boot: Callable[..., Guest]
) -> None:
    guest = boot(DiskSpec("vda", "qcow2", 16 * MIB))
    engine = Engine.of(replace(settings, qemu_as_of="4.0"))
    found = engine.hypervisor.monitor(engine.hypervisor.domain(guest.name)).capabilities
    assert found == recorded(found, (4, 0))
    assert (found.isolation, found.merge, found.flat) == (False, "same node", False)


def test_a_transaction_takes_the_actions_of_a_backup(daemon: Monitor) -> None:
    schema = Schema(daemon.execute("query-qmp-schema"))
    actions = schema.item(schema.arguments("transaction")["actions"])
    assert schema.cases(actions).keys() >= {
        "block-dirty-bitmap-add",
        "block-dirty-bitmap-merge",
        "blockdev-backup",
        "drive-backup",
    }
    assert "bitmaps" in schema.members(
        schema.members(schema.cases(actions)["block-dirty-bitmap-merge"])["data"]
    )
