"""``verify --boot``: a point that boots is seen to, by itself, and leaves nothing behind."""

from __future__ import annotations

import threading
import uuid
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.integration.conftest import MIB
from tests.integration.scenes import (
    Boot,
    TakePoints,
    domains_on,
    files,
    image_of,
    processes,
)
from tests.lab import DiskSpec
from virtvault.models import BackupResult, Progress, Verdict, VerifyRequest
from workers import recovery
from workers.engine import Engine, Ties, tag_of
from workers.jobs import Detached
from workers.repository import sidecar
from workers.verify import verify

SCREEN = "<video><model type='vga'/></video>"
NETWORK = "<interface type='user'><model type='virtio'/></interface>"
DISK = DiskSpec("vda", "qcow2", 128 * MIB)


def booted(engine: Engine, point: BackupResult, ties: Ties, **request: Any) -> Verdict:
    result = verify(engine, VerifyRequest((point.point,), boot=True, **request), ties)
    return result.verdicts[0]


def domains(engine: Engine, connection: libvirt.virConnect) -> list[str]:
    return domains_on(connection, engine.settings.runtime_dir)


def assert_nothing_remains(engine: Engine, connection: libvirt.virConnect) -> None:
    assert domains(engine, connection) == []
    runtime, state = engine.settings.runtime_dir, engine.settings.state_dir
    assert not processes(f"{runtime}/")
    assert files(runtime, f"{state}/runs", engine.settings.scratch) == []


def test_a_point_boots_alone_beside_its_domain_and_leaves_nothing(
    boot: Boot, points: TakePoints, engine: Engine, connection: libvirt.virConnect, workdir: Path
) -> None:
    guest = boot(DISK, boot=True, extra_devices=SCREEN + NETWORK)
    guest.wait_ready()
    point = points(guest).back_up()
    directory = image_of(engine, point).parent
    before = {path: path.read_bytes() for path in directory.iterdir()}
    xml: list[str] = []

    def look(progress: Progress) -> None:
        for domain in connection.listAllDomains():
            if domain.name() == f"virtvault-verify-{tag_of('t1')}" and not xml:
                xml.append(domain.XMLDesc())

    verdict = booted(engine, point, Ties("t1", look))
    assert verdict.verdict == "good"
    assert verdict.boot is not None and verdict.boot.booted, verdict.boot
    assert verdict.boot.evidence == "the guest agent answers"
    assert verdict.boot.screenshot == sidecar.SCREENSHOT
    assert (directory / sidecar.SCREENSHOT).read_bytes().startswith(b"\x89PNG\r\n")
    # It ran beside its own domain, without a network, and opened no file of the repository.
    assert "<interface" not in xml[0] and str(workdir / "repo") not in xml[0]
    assert guest.is_active() and not guest.is_paused()
    assert {path: path.read_bytes() for path in before} == before
    assert_nothing_remains(engine, connection)
    assert sidecar.verdict(directory) == verdict

    # Without an agent it is the console that tells, of life as of death.
    stored = directory / "domain.xml"
    without = ElementTree.fromstring(stored.read_text())
    devices = without.find("devices")
    assert devices is not None
    for channel in devices.findall("channel"):
        devices.remove(channel)
    options = without.find("os/cmdline")
    assert options is not None
    prompt = "echo; echo lab login:; while :; do :; done"
    options.text = f'console=ttyS0 rdinit=/bin/busybox -- sh -c "{prompt}"'
    stored.write_text(ElementTree.tostring(without, encoding="unicode"))
    report = booted(engine, point, Ties("t2")).boot
    assert report is not None and report.booted, report
    assert report.evidence == "its console says: lab login:"
    options.text = "console=ttyS0 rdinit=/nowhere"
    stored.write_text(ElementTree.tostring(without, encoding="unicode"))
    report = booted(engine, point, Ties("t3")).boot
    assert report is not None and not report.booted
    assert "Kernel panic" in report.evidence or "Unable to mount root" in report.evidence


def test_one_that_does_not_boot_is_said_so_and_its_data_is_no_worse_for_it(
    boot: Boot, points: TakePoints, engine: Engine, connection: libvirt.virConnect
) -> None:
    guest = boot(DISK, extra_devices=SCREEN)
    point = points(guest).back_up()
    verdict = booted(engine, point, Ties(uuid.uuid4().hex), boot_seconds=3)
    assert verdict.verdict == "good"
    assert verdict.boot is not None and not verdict.boot.booted
    assert "its console never answered in 3 s" in verdict.boot.evidence
    # The firmware's screen tells more.
    assert verdict.boot.screenshot == sidecar.SCREENSHOT
    # Nor does one whose machine cannot be started here.
    stored = image_of(engine, point).parent / "domain.xml"
    stored.write_text(stored.read_text().replace("machine='", "machine='no-such-"))
    verdict = booted(engine, point, Ties(uuid.uuid4().hex))
    assert verdict.boot is not None and not verdict.boot.booted
    assert "it could not be started: " in verdict.boot.evidence
    assert verdict.boot.screenshot == "" and not (stored.parent / sidecar.SCREENSHOT).exists()
    assert_nothing_remains(engine, connection)


def test_a_boot_of_a_worker_that_died_is_ended_and_done_again(
    boot: Boot, points: TakePoints, engine: Engine, connection: libvirt.virConnect
) -> None:
    guest = boot(DISK)
    point = points(guest).back_up()
    stopping = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.phase == "booting" and domains(engine, connection):
            stopping.set()

    with pytest.raises(Detached):
        booted(engine, point, Ties("t1", stop, stopping.is_set))
    assert domains(engine, connection) == []
    run = engine.journal.read("t1")
    assert run is not None

    def leave_it_running(error: str) -> None:
        """Where libvirt does not end it by itself: the journal says that it boots, and it runs."""
        run.draft["booting"], run.error = True, error
        engine.journal.write(run)
        xml = guest.domain.XMLDesc().partition("<devices>")[0]
        xml = xml.replace(guest.name, left).replace(guest.domain.UUIDString(), str(uuid.uuid4()))
        connection.createXML(f"{xml}<devices/></domain>", libvirt.VIR_DOMAIN_START_PAUSED)
        assert domains_on(connection, left) == [left]

    left = f"virtvault-verify-{tag_of('t1')}"
    leave_it_running("")
    verdict = booted(Engine.of(engine.settings), point, Ties("t1"), boot_seconds=1)
    assert verdict.verdict == "good" and verdict.boot is not None
    assert domains_on(connection, left) == []
    assert_nothing_remains(engine, connection)
    # One that has failed while libvirt was away is ended by the worker's housekeeping.
    leave_it_running("libvirt does not answer")
    recovery.tidy(engine)
    assert domains_on(connection, left) == []
    assert_nothing_remains(engine, connection)
