"""Verify and export as tasks: the command line, real processes, real kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.integration.scenes import domains_on, files, processes, qemu_img, until
from tests.lab import DiskSpec, Guest, Hypervisor, Stack, assert_same
from virtvault.errors import InvalidRequest
from virtvault.models import BackupResult, Progress, ServeResult, VerifyResult
from workers.engine import tag_of

MIB = 2**20


def command(stack: Stack, *words: str) -> tuple[int, Any]:
    """The exit code, and the JSON document on stdout."""
    done = subprocess.run(
        [Path(sys.executable).with_name("virtvault"), *words, "--json"],
        env={**os.environ, "VIRTVAULT_CONFIG": str(stack.config)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def assert_nothing_remains(stack: Stack, connection: libvirt.virConnect) -> None:
    until(lambda: not processes(f"{stack.runtime}/"), "the end of all daemons")
    assert files(stack.runtime, stack.directory / "state" / "runs") == []
    assert domains_on(connection, stack.runtime) == []


def test_they_outlive_their_worker_and_end_as_they_are_told(
    workdir: Path,
    hypervisor: Hypervisor,
    boot: Callable[..., Guest],
    connection: libvirt.virConnect,
) -> None:
    with Stack(workdir, libvirt_uri=hypervisor.uri) as stack:
        guest = boot(DiskSpec("vda", "qcow2", 64 * MIB))
        guest.qemu_io("vda", "write -P 0x41 1M 48M")
        client = stack.client()
        made = client.backup(guest.name).wait(60)
        assert isinstance(made, BackupResult)
        reference = guest.reference("vda", workdir / "reference")

        # An export stays open while its worker is killed, and ends with SUCCESS.
        code, opened = command(stack, "export", made.point, "--timeout", "1h", "--detach")
        assert (code, opened["state"]) == (0, "open")
        stack.stop("worker")
        seen = workdir / "seen"
        qemu_img("convert", "-f", "raw", "-O", "raw", opened["exports"]["vda"], seen)
        assert_same(seen, "raw", reference, "qcow2")
        stack.start("worker")
        handle = client.handle(opened["task_id"])
        until(lambda: handle.state() == "STARTED", "the next worker", 30)
        assert "the export of point" in client.cancel(handle.task_id)
        closed = handle.wait(30)
        assert isinstance(closed, ServeResult) and closed.state == "closed"
        assert handle.state() == "SUCCESS"

        # A verify goes on under its own task.
        handle = client.verify([made.point], speed=8 * MIB)

        def reading() -> bool:
            progress = handle.progress()
            return isinstance(progress, Progress) and progress.done > 8 * MIB

        until(reading, "the reading")
        with pytest.raises(InvalidRequest, match="has no block jobs to pause"):
            client.pause(handle.task_id)
        stack.stop("worker")
        stack.start("worker")
        result = handle.wait(60)
        assert isinstance(result, VerifyResult)
        assert (result.task_id, result.state) == (handle.task_id, "good")

        # So does a boot: its guest ends with the worker that started it.
        handle = client.verify([made.point], boot=True, boot_seconds=3)
        booted = f"virtvault-verify-{tag_of(handle.task_id)}"

        def there() -> bool:
            return booted in [domain.name() for domain in connection.listAllDomains()]

        until(there, "the point to boot", 30)
        stack.stop("worker")
        until(lambda: not there(), "libvirt to end it", 30)
        stack.start("worker")
        result = handle.wait(60)
        assert isinstance(result, VerifyResult) and result.verdicts[0].boot is not None
        assert "answered in 3 s" in result.verdicts[0].boot.evidence
        assert_nothing_remains(stack, connection)

        # What is found bad is told by the exit code, and listed as such.
        image = stack.repository / made.uuid / made.point / "vda.qcow2"
        content = bytearray(image.read_bytes())
        content[content.index(b"\x41" * 65536)] = 0
        image.write_bytes(content)
        code, verdict = command(stack, "verify", guest.name)
        assert (code, verdict["state"]) == (1, "bad")
        assert verdict["verdicts"][0]["disks"][0]["verdict"] == "bad"
        code, refused = command(stack, "export", made.point)
        assert (code, refused["error"]["type"]) == (2, "PointBad")
        (listed,) = client.statuses(guest.name)
        assert (listed.state, listed.verdict) == ("bad", "bad")
        assert_nothing_remains(stack, connection)
