"""Restores as Celery tasks: a worker killed in the middle, and the next one under the same id."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.integration.conftest import MIB
from tests.integration.scenes import VDA, Boot, give_new_content, until
from tests.integration.test_restore_domain import new_name
from tests.lab import Hypervisor, assert_same
from tests.lab.stack import Stack
from virtvault.models import BackupResult, RestoreResult


@pytest.fixture
def stack(workdir: Path, hypervisor: Hypervisor) -> Iterator[Stack]:
    with Stack(workdir, libvirt_uri=hypervisor.uri) as running:
        yield running


def test_an_instant_restore_whose_worker_is_killed_ends_under_its_own_task(
    stack: Stack, boot: Boot, connection: libvirt.virConnect, workdir: Path
) -> None:
    guest = boot(VDA)
    give_new_content(guest, 1)
    client = stack.client()
    taken = client.backup(guest.name).wait(60)
    assert isinstance(taken, BackupResult)
    reference = guest.reference("vda", workdir / "reference")
    name = new_name()
    handle = client.restore(taken.point, name=name, mode="instant", speed=MIB)

    def pulling() -> bool:
        progress = handle.progress()
        return bool(progress and progress.phase == "pulling" and progress.done)

    until(pulling, "the pull", 60)
    domain = connection.lookupByName(name)
    number = domain.ID()
    stack.stop("worker", signal.SIGKILL)
    assert domain.isActive()
    stack.start("worker")
    client.set_speed(handle.task_id, 0)
    result = handle.wait(90)
    assert isinstance(result, RestoreResult)
    assert (result.name, result.domain_uuid) == (name, domain.UUIDString())
    assert domain.ID() in (number, -1)  # never another QEMU: its BIOS may have ended it
    if domain.isActive():
        domain.destroy()
    domain.undefine()
    assert_same(workdir / name / "vda.qcow2", "qcow2", reference, "qcow2")
