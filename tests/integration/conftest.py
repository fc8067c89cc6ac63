"""Fixtures of the integration tests: real libvirt, real guests, an engine of each test's own."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import libvirt
import pytest

from tests.lab import DiskSpec, Guest, Hypervisor, assert_same
from virtvault.models import BackupRequest, BackupResult
from virtvault.settings import RepositorySettings, Settings
from workers.backup import backup
from workers.engine import Engine, Ties

GIB = 2**30
MIB = 2**20


@pytest.fixture(scope="session")
def hypervisor() -> Iterator[Hypervisor]:
    """libvirtd of this machine, started where it does not run."""
    with Hypervisor() as started:
        yield started


@pytest.fixture
def connection(hypervisor: Hypervisor) -> Iterator[libvirt.virConnect]:
    opened = hypervisor.connect()
    yield opened
    opened.close()


@pytest.fixture
def workdir() -> Iterator[Path]:
    """A directory that QEMU's user can traverse."""
    path = Path(tempfile.mkdtemp(prefix="vvlab-", dir="/var/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def settings(workdir: Path, hypervisor: Hypervisor) -> Iterator[Settings]:
    """Settings of a hypervisor of this test's own, with one repository."""
    (workdir / "repo").mkdir()
    runtime = Path("/run", workdir.name)
    yield Settings(
        host="lab",
        libvirt_uri=hypervisor.uri,
        state_dir=str(workdir / "state"),
        runtime_dir=str(runtime),
        repositories={"main": RepositorySettings("main", str(workdir / "repo"))},
        restore_roots=(str(workdir),),
        poll_min=0.05,
        poll_max=0.5,
    )
    shutil.rmtree(runtime, ignore_errors=True)


@pytest.fixture
def engine(settings: Settings) -> Engine:
    return Engine.of(settings)


@pytest.fixture
def boot(connection: libvirt.virConnect, workdir: Path) -> Iterator[Callable[..., Guest]]:
    """Start guests: paused and without a system unless told otherwise."""
    directory = workdir / "guest"
    directory.mkdir()
    guests: list[Guest] = []

    def start(
        *disks: DiskSpec, boot: bool = False, writer: bool = False, extra_devices: str = ""
    ) -> Guest:
        name = f"vv-{uuid.uuid4().hex[:8]}"
        guest = Guest(
            connection,
            directory,
            name,
            list(disks),
            boot=boot,
            writer=writer,
            agent=boot,
            extra_devices=extra_devices,
        )
        guests.append(guest)
        guest.start()
        return guest

    yield start
    for guest in guests:
        guest.close()


@dataclass
class Points:
    """Takes points of one guest, each with references copied at the same instant."""

    engine: Engine
    guest: Guest
    directory: Path
    taken: list[tuple[BackupResult, dict[str, Path]]]

    def take(self, sync: str = "auto", disks: tuple[str, ...] = ()) -> BackupResult:
        """Suspend a running guest, copy references, back up, and let it run as before."""
        running = self.guest.is_active() and not self.guest.is_paused()
        if running:
            self.guest.suspend()
        number = len(self.taken)
        references = {
            target: self.guest.reference(target, self.directory / f"ref-{number}-{target}")
            for target in self.targets(disks)
        }
        result = self.back_up(sync=sync, disks=disks)
        if running:
            self.guest.resume()
        self.taken.append((result, references))
        return result

    def back_up(self, sync: str = "auto", disks: tuple[str, ...] = ()) -> BackupResult:
        """A backup without references."""
        request = BackupRequest(domain=self.guest.domain.name(), sync=sync, disks=disks)
        return backup(self.engine, request, Ties(uuid.uuid4().hex))

    def targets(self, disks: tuple[str, ...]) -> list[str]:
        return list(disks) or list(self.guest.disks)

    def prove_all(self) -> None:
        """Every disk of every point taken is byte for byte its reference."""
        repository = Path(self.engine.settings.repositories["main"].path)
        formats = {target: spec.format for target, spec in self.guest.disks.items()}
        for result, references in self.taken:
            for target, reference in references.items():
                image = repository / result.uuid / result.point / f"{target}.qcow2"
                assert_same(image, "qcow2", reference, formats[target])


@pytest.fixture
def points(engine: Engine, workdir: Path) -> Callable[[Guest], Points]:
    def make(guest: Guest) -> Points:
        return Points(engine, guest, workdir, [])

    return make


def with_settings(engine: Engine, **changes: object) -> Engine:
    """The same engine with other settings."""
    return Engine.of(replace(engine.settings, **changes))  # type: ignore[arg-type]
