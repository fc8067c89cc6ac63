"""Redis, libvirt or a worker that is not there: a clear error, an exit code, nothing changed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.integration.conftest import MIB
from tests.lab import DiskSpec, Guest, Hypervisor, Stack
from virtvault.cli.main import cli


def run(stack: Stack, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["--config", str(stack.config), *arguments])
    assert "Traceback" not in done.output
    return done.exit_code, done.output


@pytest.fixture
def stack(workdir: Path) -> Iterator[Stack]:
    """A hypervisor whose libvirt is not there."""
    nowhere = f"qemu+unix:///system?socket={workdir}/no-libvirt"
    with Stack(workdir, libvirt_uri=nowhere, control_timeout=3) as running:
        yield running


def test_libvirt_that_is_away_is_named_by_check_and_by_each_question(stack: Stack) -> None:
    code, output = run(stack, "check")
    assert code == 1
    assert "failed" in output
    assert "does not answer" in output
    code, output = run(stack, "domains", "--host", stack.host)
    assert code == 3
    assert "Start libvirtd" in output
    code, output = run(stack, "domains")
    assert code == 0
    assert "does not answer" in output
    code, output = run(stack, "backup", "db1")
    assert code == 3
    assert not list(stack.repository.glob("*/*"))


def test_a_worker_that_is_away_is_named(stack: Stack) -> None:
    stack.stop("control", signal.SIGTERM)
    code, output = run(stack, "domains", "--host", stack.host)
    assert code == 3
    assert ".control" in output


def test_redis_that_is_away_is_named(stack: Stack) -> None:
    stack.redis.stop()
    for arguments in (("points",), ("backup", "db1"), ("hosts",), ("task", "x")):
        code, output = run(stack, *arguments)
        assert code == 3, output
        assert "Redis does not answer" in output


def test_jobs_of_a_domain_that_hangs_are_unknown_and_the_others_are_shown(
    workdir: Path, hypervisor: Hypervisor, boot: Callable[..., Guest]
) -> None:
    guest = boot(DiskSpec("vda", "qcow2", 16 * MIB))
    with Stack(workdir, libvirt_uri=hypervisor.uri, control_timeout=6) as stack:
        pid = int(Path(f"/run/libvirt/qemu/{guest.name}.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            jobs = [job for job in stack.client().jobs() if job.domain == guest.name]
        finally:
            os.kill(pid, signal.SIGCONT)
        assert [job.status for job in jobs] == ["unknown"]
