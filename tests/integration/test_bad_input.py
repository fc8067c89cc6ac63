"""What cannot be done is said, with what to do next, before anything is touched."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import MIB, with_settings
from tests.integration.scenes import assert_nothing_remains, bitmaps, committed, nodes
from tests.lab import DiskSpec, Guest
from virtvault.errors import (
    InvalidSettings,
    NothingToBackUp,
    NotReachable,
    RepositoryUnusable,
    UnknownDisk,
    UnknownDomain,
    UnknownRepository,
    UnknownTask,
    VirtvaultError,
)
from virtvault.models import BackupRequest
from virtvault.settings import RepositorySettings
from workers import job_control, job_listing, questions, stored
from workers.backup import backup
from workers.engine import Engine, Ties

Boot = Callable[..., Guest]

VDA = DiskSpec("vda", "qcow2", 64 * MIB)
EMPTY_CDROM = "<disk type='file' device='cdrom'><target dev='sdc' bus='sata'/><readonly/></disk>"


def assert_refused(
    engine: Engine, guest: Guest, error: type[VirtvaultError], *words: str, **request: Any
) -> None:
    """Refused for that reason, with a mend, and QEMU and the repository are as before."""

    def look() -> object:
        in_qemu = (nodes(guest), bitmaps(guest)) if guest.is_active() else None
        return in_qemu, committed(engine)

    before = look()
    asked = BackupRequest(**{"domain": guest.name, **request})
    with pytest.raises(VirtvaultError) as caught:
        backup(engine, asked, Ties(uuid.uuid4().hex))
    assert type(caught.value) is error
    assert all(word in caught.value.message for word in words), caught.value.message
    assert caught.value.mend
    assert look() == before
    assert_nothing_remains(engine, guest)


def test_a_backup_of_what_is_not_there_is_refused(
    boot: Boot, engine: Engine, workdir: Path
) -> None:
    guest = boot(VDA, extra_devices=EMPTY_CDROM)
    nobody = str(uuid.uuid4())
    assert_refused(engine, guest, UnknownDomain, "'nobody'", "lab", domain="nobody")
    assert_refused(engine, guest, UnknownDomain, nobody, domain=nobody)
    assert_refused(engine, guest, UnknownDisk, "'vdq'", guest.name, disks=("vda", "vdq"))
    assert_refused(engine, guest, UnknownDisk, "sdc", "cdrom", disks=("vda", "sdc"))
    assert_refused(engine, guest, UnknownRepository, "'other'", repository="other")
    two = {name: RepositorySettings(name, str(workdir / "repo")) for name in ("main", "second")}
    undecided = with_settings(engine, repositories=two)
    assert_refused(undecided, guest, InvalidSettings, "2 of them")
    gone = with_settings(engine, libvirt_uri="qemu+unix:///system?socket=/nonexistent")
    assert_refused(gone, guest, NotReachable, "/nonexistent", "does not answer")


def test_a_domain_without_a_disk_to_back_up_is_refused(boot: Boot, engine: Engine) -> None:
    guest = boot(extra_devices=EMPTY_CDROM)
    assert_refused(engine, guest, NothingToBackUp, guest.name, "sdc: cdrom drive, empty")


@pytest.mark.parametrize(
    "identity",
    ["", "{}", "[]", '{"schema_version": 2, "id": "01234567"}'],
)
def test_a_repository_whose_identity_cannot_be_read_is_refused(
    boot: Boot, engine: Engine, workdir: Path, identity: str
) -> None:
    guest = boot(VDA)
    (workdir / "repo" / "repository.json").write_text(identity)
    assert_refused(engine, guest, RepositoryUnusable, "repository.json")
    assert (workdir / "repo" / "repository.json").read_text() == identity


def test_questions_about_what_is_not_there_are_answered_so(boot: Boot, engine: Engine) -> None:
    with pytest.raises(UnknownDomain, match="nobody"):
        questions.disks(engine, "nobody")
    for ask in (job_control.pause, job_control.resume):
        with pytest.raises(UnknownTask, match="no block jobs") as caught:
            ask(engine, "no-such-task")
        assert caught.value.mend
    assert stored.find(engine, "20200101T000000Z-00000000") is None
    guest = boot(VDA, extra_devices=EMPTY_CDROM)
    assert [(d.target, d.skip) for d in questions.disks(engine, guest.name)] == [
        ("vda", ""),
        ("sdc", "cdrom drive, empty"),
    ]
    assert job_listing.block_jobs(engine) == [] or all(
        job.domain != guest.name for job in job_listing.block_jobs(engine)
    )
