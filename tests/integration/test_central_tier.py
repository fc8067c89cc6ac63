"""A policy over the whole system: every role a process of its own, one real domain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import MIB
from tests.lab import DiskSpec, Guest, Hypervisor, Stack
from virtvault import policy_file
from virtvault.models import DomainStatus

POLICY = """\
policies:
  - name: minutely
    select: {{names: [{name}]}}
    schedule: {{every: 1m, spread: 0}}
    rpo: 10m
"""


@pytest.fixture
def stack(workdir: Path, hypervisor: Hypervisor) -> Iterator[Stack]:
    with Stack(workdir, libvirt_uri=hypervisor.uri) as running:
        yield running


def wait_for(condition: Callable[[], object], what: str, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.1)


def test_a_policy_is_carried_out_while_central_is_down_and_nothing_of_it_is_lost(
    stack: Stack, boot: Callable[..., Guest]
) -> None:
    guest = boot(DiskSpec("vda", "qcow2", 16 * MIB))
    client = stack.client()

    def status() -> DomainStatus:
        (found,) = client.fleet(guest.name).domains
        return found

    wait_for(lambda: client.find_domain(guest.name), "the inventory")
    wait_for(lambda: client.fleet().totals.domains, "the inventory in the catalog")
    assert status().health == "unprotected"
    text = POLICY.format(name=guest.name)
    version = client.apply_policies(policy_file.read(text, "test"), text, by="test")
    wait_for(lambda: "version 1" in stack.log("beat"), "beat to hear of the policy")
    assert status().health == "never"
    stack.stop("central")

    points = stack.repository / guest.domain.UUIDString()
    wait_for(lambda: list(points.glob("*/manifest.json")), "a point, without central")

    stack.start("central")
    wait_for(lambda: status().health == "fresh", "central to hear of the point")
    now = status()
    assert now.policies == ("minutely",)
    assert (now.rpo, now.chain, now.error) == (600, 1, "")
    # The point was told first; its run and its slot come in any order.
    wait_for(lambda: client.runs(domain=guest.name, policy="minutely"), "the run's end")
    run = client.runs(domain=guest.name, policy="minutely")[-1]
    assert (run.state, run.kind, run.point) == ("complete", "backup", now.newest)
    slot = client.slots(domain=guest.name)[-1]
    assert (slot.state, slot.task_id, slot.slot) == ("dispatched", run.task_id, run.slot)
    assert client.policies().text == text
    assert client.policies().number == version.number
