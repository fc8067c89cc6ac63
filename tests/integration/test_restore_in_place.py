"""In place: whatever meets the domain while its images are replaced, none of its data is lost."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest

from tests.integration.conftest import Points
from tests.integration.scenes import VDA, Boot, TakePoints, give_new_content
from tests.integration.test_restore import (
    assert_nothing_remains,
    event_loop,
    own_event_loop,  # noqa: F401
)
from tests.integration.test_restore_domain import (
    assert_restored,
    images,
    new_name,
    refused,
    shut_off,  # noqa: F401
)
from tests.lab import Guest
from virtvault.errors import (
    Cancelled,
    DomainBusy,
    InvalidRequest,
    UnknownDomain,
    VirtvaultError,
    WorkFailed,
)
from virtvault.models import Progress, RestoreRequest, RestoreResult
from workers.engine import Engine, Ties
from workers.jobs import Detached
from workers.restore import daemon_of, restore

INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE


class InPlace:
    """A restore in place of the first point, killed after so many moves."""

    def __init__(self, chain: Points, engine: Engine) -> None:
        self.engine = engine
        self.request = RestoreRequest(point=chain.taken[0][0].point, in_place=True)
        self.task_id = uuid.uuid4().hex

    def run(self) -> RestoreResult:
        """A worker takes it up."""
        return restore(Engine.of(self.engine.settings), self.request, Ties(self.task_id))

    def killed(self, patch: pytest.MonkeyPatch, moves: int) -> None:
        with failing(patch, moves, Detached()), pytest.raises(Detached):
            self.run()


@contextmanager
def failing(patch: pytest.MonkeyPatch, moves: int, error: BaseException) -> Iterator[None]:
    """Renames end with an error after the first ``moves``."""
    rename, left = Path.rename, moves

    def move(self: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            raise error
        left -= 1
        return rename(self, target)

    with patch.context() as patched:
        patched.setattr(Path, "rename", move)
        yield


def test_a_domain_started_before_the_first_move_keeps_its_images(
    shut_off: Points,  # noqa: F811
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = shut_off.guest
    before = {name: (guest.directory / name).stat().st_ino for name in images(guest)}
    restoring = InPlace(shut_off, engine)
    restoring.killed(monkeypatch, moves=0)
    guest.start()
    guest.qemu_io("vda", "write -P 0x77 4M 1M")
    with pytest.raises(DomainBusy, match=r"in use|runs"):
        restoring.run()
    assert guest.is_active()
    assert {name: (guest.directory / name).stat().st_ino for name in images(guest)} == before
    guest.qemu_io("vda", "read -P 0x77 4M 1M")
    assert_nothing_remains(engine)


def test_killed_before_the_first_move_the_next_worker_replaces_them(
    shut_off: Points,  # noqa: F811
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = images(shut_off.guest)
    restoring = InPlace(shut_off, engine)
    restoring.killed(monkeypatch, moves=0)
    assert_restored(shut_off, 0, restoring.run())
    assert images(shut_off.guest) == before
    assert_nothing_remains(engine)


def test_a_domain_that_runs_on_its_new_images_already_is_left_to(
    shut_off: Points,  # noqa: F811
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = shut_off.guest
    before = images(guest)
    restoring = InPlace(shut_off, engine)
    journaled = type(engine.journal).write

    def dies(self: object, run: object) -> None:
        if run.phase == "committed":  # type: ignore[attr-defined]
            raise Detached
        journaled(self, run)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(type(engine.journal), "write", dies)
        with pytest.raises(Detached):
            restoring.run()
    guest.start()
    restoring.run()
    assert guest.is_active()
    assert images(guest) == before
    assert_nothing_remains(engine)


def test_an_image_put_in_the_place_of_one_that_was_moved_is_not_touched(
    shut_off: Points,  # noqa: F811
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = shut_off.guest
    restoring = InPlace(shut_off, engine)
    restoring.killed(monkeypatch, moves=2)
    theirs = guest.image("vda")
    theirs.write_bytes(b"mine")
    with pytest.raises(WorkFailed, match=f"{theirs} was put in the place of disk vda"):
        restoring.run()
    assert theirs.read_bytes() == b"mine"
    aside = [name for name in images(guest) if ".before-" in name]
    assert len(aside) == 2
    theirs.unlink()
    assert_restored(shut_off, 0, restoring.run())
    assert_nothing_remains(engine)


def test_a_new_image_that_somebody_has_replaced_is_not_taken_for_it(
    shut_off: Points,  # noqa: F811
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = shut_off.guest
    restoring = InPlace(shut_off, engine)
    restoring.killed(monkeypatch, moves=3)
    new = guest.image("vda").rename(guest.directory / "kept")
    guest.image("vda").write_bytes(b"mine")
    with pytest.raises(WorkFailed, match="somebody has moved or replaced it"):
        restoring.run()
    assert not guest.image("vdb").exists()
    assert guest.image("vda").read_bytes() == b"mine"
    new.rename(guest.image("vda"))
    assert_restored(shut_off, 0, restoring.run())
    assert_nothing_remains(engine)


def test_images_that_cannot_be_moved_stay_and_the_restore_fails(
    shut_off: Points,  # noqa: F811
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = images(shut_off.guest)
    restoring = InPlace(shut_off, engine)
    with (
        failing(monkeypatch, 0, OSError(1, "Operation not permitted")),
        pytest.raises(WorkFailed, match=r"not permitted\. None was") as caught,
    ):
        restoring.run()
    assert caught.value.mend
    assert images(shut_off.guest) == before
    assert_nothing_remains(engine)
    shut_off.guest.start()


def test_an_encrypted_disk_is_not_replaced_by_a_plain_one(
    boot: Boot, points: TakePoints, engine: Engine, connection: libvirt.virConnect
) -> None:
    chain = points(boot(VDA))
    give_new_content(chain.guest, 1)
    point = chain.take().point
    guest = chain.guest
    guest.power_off()
    image, secret = guest.image("vda"), uuid.uuid4()
    encrypted = (
        f"<encryption format='luks'><secret type='passphrase' uuid='{secret}'/></encryption>"
    )
    xml = guest.domain.XMLDesc(INACTIVE)
    changed = re.sub(f"<source file='{image}'[^>]*/>", rf"\g<0>{encrypted}", xml)
    assert changed != xml
    connection.defineXML(changed)
    refused(engine, InvalidRequest, "Disk vda of domain .* is encrypted", point, in_place=True)


# -- a run in the journal that is not this one, or cannot go on ------------------------------------


def detached(chain: Points, engine: Engine) -> tuple[RestoreRequest, str]:
    """A restore in place that a worker has left to the next in the middle of its copy."""
    request = RestoreRequest(point=chain.taken[0][0].point, in_place=True, speed=64 * 1024)
    task_id, stopping = uuid.uuid4().hex, threading.Event()

    def see(progress: Progress) -> None:
        if progress.phase == "copying" and progress.disks:
            stopping.set()

    with event_loop(), pytest.raises(Detached):
        restore(engine, request, Ties(task_id, see, stopping.is_set))
    assert daemon_of(engine, task_id).alive()
    return request, task_id


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_restore_whose_domain_was_undefined_leaves_nothing(
    shut_off: Points,  # noqa: F811
    engine: Engine,
    connection: libvirt.virConnect,
    cancelled: bool,
) -> None:
    guest: Guest = shut_off.guest
    before = {path.name for path in guest.directory.iterdir()}
    request, task_id = detached(shut_off, engine)
    xml = guest.domain.XMLDesc(INACTIVE)
    guest.domain.undefine()
    error: type[VirtvaultError] = UnknownDomain
    if cancelled:
        engine.journal.wishes(task_id).touch()
        error = Cancelled
    try:
        with pytest.raises(error):
            restore(Engine.of(engine.settings), request, Ties(task_id))
        assert {path.name for path in guest.directory.iterdir()} == before
        assert_nothing_remains(engine)
    finally:
        connection.defineXML(xml)


def test_a_task_that_is_at_work_is_not_taken_for_another_request(
    shut_off: Points,  # noqa: F811
    engine: Engine,
) -> None:
    guest = shut_off.guest
    request, task_id = detached(shut_off, engine)
    wish = engine.journal.wishes(task_id)
    wish.touch()
    other = RestoreRequest(point=request.point, name=new_name())
    with pytest.raises(InvalidRequest, match=f"Task {task_id} is at work already") as caught:
        restore(Engine.of(engine.settings), other, Ties(task_id))
    assert caught.value.mend
    assert guest.domain.isPersistent()
    assert wish.exists()
    with pytest.raises(Cancelled):
        restore(Engine.of(engine.settings), request, Ties(task_id))
    assert guest.domain.isPersistent()
    assert_nothing_remains(engine)
