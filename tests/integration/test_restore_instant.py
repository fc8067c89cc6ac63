"""A guest runs from a point at once, whatever dies meanwhile, and in the end stands alone."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import libvirt
import pytest

from tests.integration.conftest import MIB
from tests.integration.scenes import (
    VDA,
    VDB_RAW,
    Boot,
    TakePoints,
    give_new_content,
    qemu_img,
    until,
)
from tests.integration.test_restore import assert_nothing_remains, event_loop
from tests.integration.test_restore_domain import new_name
from tests.lab import DiskSpec, Guest, assert_same
from tests.lab.monitor import Monitor
from virtvault.errors import Cancelled, DomainBusy, VirtvaultError
from virtvault.models import BackupRequest, Progress, RestoreRequest, RestoreResult
from workers import job_control, job_listing
from workers.backup import backup
from workers.engine import Engine, Ties
from workers.jobs import Detached
from workers.repository.manifest import backing_of
from workers.repository.sidecar import PROTECTED
from workers.restore import daemon_of, pulling, restore

NO_BACKING = ""


class Booting:
    """An instant restore in a thread of its own; its pulls crawl until :meth:`hurry`."""

    def __init__(
        self, engine: Engine, point: str, name: str, *, task_id: str = "", speed: int = 256 * 1024
    ) -> None:
        self.engine = engine
        self.name = name
        self.task_id = task_id or uuid.uuid4().hex
        self.request = RestoreRequest(point=point, name=name, mode="instant", speed=speed)
        self.directory = Path(engine.settings.restore_roots[0], name)
        self.phases: list[str] = []
        self.stopping = threading.Event()
        self._progress: Progress | None = None
        self._result: RestoreResult | None = None
        self._raised: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="instant restore under test")

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self.pulling() or not self._thread.is_alive(), "the pull", 60)
        assert self._thread.is_alive() or self._result, self._raised
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.engine.journal.wishes(self.task_id).touch()
            self._thread.join(60)
            assert not self._thread.is_alive()

    def pulling(self) -> bool:
        found = self._progress
        return bool(found and found.phase == "pulling" and found.done)

    def ended(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> RestoreResult:
        self._thread.join(90)
        assert not self._thread.is_alive(), f"it does not end: {self._progress}"
        assert self._result is not None, self._raised
        return self._result

    def raised(self) -> BaseException:
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self._raised is not None, "it succeeded"
        return self._raised

    def daemon_pid(self) -> int:
        """Its storage daemon's; 0 while there is none."""
        file = daemon_of(self.engine, self.task_id).directory / "daemon.pid"
        return int(file.read_text() or 0) if file.exists() else 0

    def hurry(self) -> bool:
        """Take the speed limit off what is being pulled now."""
        with contextlib.suppress(VirtvaultError):
            job_control.set_speed(self.engine, 0, self.task_id)
        return True

    def _run(self) -> None:
        ties = Ties(self.task_id, self._see, self.stopping.is_set)
        with event_loop():
            try:
                self._result = restore(self.engine, self.request, ties)
            except BaseException as error:
                self._raised = error

    def _see(self, progress: Progress) -> None:
        self._progress = progress
        if progress.phase not in self.phases:
            self.phases.append(progress.phase)


@pytest.fixture
def name(connection: libvirt.virConnect) -> Iterator[str]:
    """A new domain's name; the domain is taken away at the end."""
    made = new_name()
    yield made
    for domain in connection.listAllDomains():
        if domain.name() == made:
            if domain.isActive():
                domain.destroy()
            domain.undefine()


def assert_alone(overlay: Path) -> None:
    """The image needs no other, and is sound."""
    assert backing_of(overlay) == NO_BACKING
    qemu_img("check", "-q", "-f", "qcow2", overlay)


def test_a_real_guest_runs_on_while_daemon_and_worker_die_and_boots_without_the_repository(
    boot: Boot,
    points: TakePoints,
    engine: Engine,
    connection: libvirt.virConnect,
    workdir: Path,
    name: str,
) -> None:
    guest = boot(DiskSpec("vda", "qcow2", 96 * MIB), boot=True, writer=True)
    guest.wait_ready()
    guest.wait_ticks(3)
    point = points(guest).back_up().point
    guest.power_off()

    first = Booting(engine, point, name)
    with first:
        console = Console(first.directory / f"{name}-{guest.name}-console.log")
        domain = connection.lookupByName(name)
        protected = next((workdir / "repo").glob(f"*/{point}")) / PROTECTED
        assert name in protected.read_text()
        until(lambda: console.ticks() >= 2, "the guest's own work", 60)
        assert backing_of(first.directory / "vda.qcow2") != NO_BACKING

        # The daemon dies: the guest stands for a moment at most.
        os.kill(pid := first.daemon_pid(), signal.SIGKILL)
        until(lambda: first.daemon_pid() not in (0, pid), "another daemon")
        seen = console.ticks()
        until(lambda: console.ticks() >= seen + 3, "the guest to go on", 60)

        # The worker goes, and another one comes; meanwhile the guest goes on.
        first.stopping.set()
        assert isinstance(first.raised(), Detached)
    seen = console.ticks()
    until(lambda: console.ticks() >= seen + 2, "the guest to go on", 60)
    with Booting(Engine.of(engine.settings), point, name, task_id=first.task_id) as second:
        with pytest.raises(DomainBusy, match="is being restored"):
            backup(engine, BackupRequest(domain=name), Ties(uuid.uuid4().hex))
        # It is steered by its task, as any other.
        assert "paused" in job_control.pause(engine, first.task_id)
        (job,) = [j for j in job_listing.block_jobs(engine) if j.task_id == first.task_id]
        assert (job.domain, job.type) == (name, "stream")
        assert "running" in job_control.resume(engine, first.task_id)
        second.hurry()
        result = second.result()
    assert first.phases == ["preparing", "booting", "pulling"]
    assert second.phases == ["pulling", "closing"]
    assert result.started < result.booted < result.finished
    assert backing_of(first.directory / "vda.qcow2") == NO_BACKING
    assert not protected.exists()
    inactive = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    assert "<source protocol" not in inactive
    # Asked of each node, QEMU shows none of the point's, and lives.
    nodes = Monitor(domain, Path(f"/var/log/libvirt/qemu/{name}.log")).qmp(
        "query-named-block-nodes", flat=True
    )
    assert sorted(node["drv"] for node in nodes) == ["file", "qcow2"]
    assert "error_policy" not in inactive
    assert first.daemon_pid() == 0
    (workdir / "repo").rename(workdir / "elsewhere")
    seen = console.ticks()
    until(lambda: console.ticks() >= seen + 2, "the guest to go on", 60)
    assert not console.complaints()
    domain.destroy()
    console.path.unlink()
    domain.create()
    until(lambda: console.ticks() >= 2, "the guest to boot without the repository", 60)
    assert not console.complaints()
    domain.destroy()
    assert_alone(first.directory / "vda.qcow2")
    assert_nothing_remains(engine)


class Console:
    """What a lab guest says on its serial port."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def text(self) -> str:
        return self.path.read_text(errors="replace") if self.path.exists() else ""

    def ticks(self) -> int:
        found = re.findall(r"LAB-TICK (\d+)\s", self.text())
        return int(found[-1]) if found else 0

    def complaints(self) -> list[str]:
        return re.findall(r"LAB-FAILED.*|.*I/O error.*|.*EXT4-fs (?:error|warning).*", self.text())


@pytest.fixture
def pointed(boot: Boot, points: TakePoints) -> tuple[Guest, str, dict[str, Path]]:
    """A guest without a system, a point of it, and references."""
    chain = points(boot(VDA, VDB_RAW))
    give_new_content(chain.guest, 1)
    chain.take()
    give_new_content(chain.guest, 2)
    chain.take()
    taken, references = chain.taken[-1]
    return chain.guest, taken.point, references


def assert_content(guest: Guest, directory: Path, references: dict[str, Path]) -> None:
    for target, reference in references.items():
        overlay = directory / f"{target}.qcow2"
        assert_alone(overlay)
        assert_same(overlay, "qcow2", reference, guest.disks[target].format)


def test_a_guest_that_is_shut_off_meanwhile_gets_all_of_its_data(
    pointed: tuple[Guest, str, dict[str, Path]],
    engine: Engine,
    connection: libvirt.virConnect,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    guest, point, references = pointed
    monkeypatch.setattr(pulling, "SHUT_OFF", 0.0)
    with Booting(engine, point, name) as booting:
        connection.lookupByName(name).destroy()
        until(lambda: "virtvault-" in str(jobs_of(engine, booting)), "the daemon's own jobs")
        # Again with another daemon, since nobody is there to be hurt.
        os.kill(booting.daemon_pid(), signal.SIGKILL)
        until(lambda: len(jobs_of(engine, booting)) == 2, "the jobs again")
        booting.hurry()
        booting.result()
    assert_content(guest, booting.directory, references)
    assert_nothing_remains(engine)


def jobs_of(engine: Engine, booting: Booting) -> list[str]:
    found = job_listing.block_jobs(engine)
    return [job.job for job in found if job.task_id == booting.task_id and job.status == "running"]


def test_a_qemu_killed_before_it_wrote_what_it_had_pulled_loses_nothing(
    pointed: tuple[Guest, str, dict[str, Path]],
    engine: Engine,
    connection: libvirt.virConnect,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    guest, point, references = pointed
    monkeypatch.setattr(pulling, "SHUT_OFF", 0.0)
    monkeypatch.setattr(pulling, "_qemu_io", lambda *_: None)
    with Booting(engine, point, name) as booting:
        overlays = [booting.directory / f"{target}.qcow2" for target in references]

        def ended() -> bool:
            return booting.hurry() and all(backing_of(o) == NO_BACKING for o in overlays)

        until(ended, "the end of the pulls")
        os.kill(int(Path(f"/run/libvirt/qemu/{name}.pid").read_text()), signal.SIGKILL)
        lost = [pulling.absent(overlay) for overlay in overlays]
        assert any(lost), "the case this test is for did not come about"
        until(lambda: booting.hurry() and booting.ended(), "the daemon's own pulls", 60)
        booting.result()
    assert_content(guest, booting.directory, references)


def test_a_cancelled_one_leaves_neither_domain_nor_files(
    pointed: tuple[Guest, str, dict[str, Path]],
    engine: Engine,
    connection: libvirt.virConnect,
    workdir: Path,
    name: str,
) -> None:
    _, point, _ = pointed
    with Booting(engine, point, name) as booting:
        assert connection.lookupByName(name).isActive()
        job_control.cancel(engine, booting.task_id)
        assert isinstance(booting.raised(), Cancelled)
    assert name not in [domain.name() for domain in connection.listAllDomains()]
    assert not [p for p in (workdir / name).rglob("*") if p.suffix == ".qcow2"]
    assert not list((workdir / "repo").rglob(PROTECTED))
    assert_nothing_remains(engine)


def test_a_worker_killed_as_it_boots_the_guest_is_mended(
    pointed: tuple[Guest, str, dict[str, Path]],
    engine: Engine,
    connection: libvirt.virConnect,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    guest, point, references = pointed
    from workers.restore.instant import Instant

    request = RestoreRequest(point=point, name=name, mode="instant")
    task = uuid.uuid4().hex

    def dies(*_: object) -> None:
        raise Detached  # nothing is undone on its way out, as after a SIGKILL

    # Before the guest ran it begins anew, after that it goes on.
    for step in ("serve", "_booted"):
        with monkeypatch.context() as patched:
            patched.setattr(Instant, step, dies)
            with pytest.raises(Detached), event_loop():
                restore(engine, request, Ties(task))
    started = connection.lookupByName(name)
    number = started.ID()
    with event_loop():
        result = restore(Engine.of(engine.settings), request, Ties(task))
    assert (started.ID(), started.UUIDString()) == (number, result.domain_uuid)
    if started.isActive():
        started.destroy()
    assert_content(guest, Path(result.to), references)
    assert_nothing_remains(engine)
