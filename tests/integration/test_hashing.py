"""A backup that ends while it reads back what it has stored: no interval is lost, nothing half."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

import pytest

from tests.integration.conftest import MIB
from tests.integration.scenes import (
    VDA,
    Boot,
    TakePoints,
    assert_nothing_remains,
    committed,
    give_new_content,
    syncs,
)
from virtvault.errors import Cancelled, RepositoryUnusable
from virtvault.models import BackupRequest, BackupResult, Progress
from workers.backup import backup
from workers.engine import Engine, Ties
from workers.jobs import Detached


@pytest.mark.parametrize("end", ["detached", "cancelled", "unreadable"])
def test_an_end_while_hashing_loses_nothing(
    boot: Boot, points: TakePoints, engine: Engine, end: str
) -> None:
    chain = points(boot(VDA))
    give_new_content(chain.guest, 1)
    chain.take()
    give_new_content(chain.guest, 2)
    before = committed(engine)
    task_id, stopping = uuid.uuid4().hex, threading.Event()
    chain.guest.qemu_io("vda", "flush")
    reference = chain.guest.reference("vda", chain.directory / "ref-hashing-vda")

    def see(progress: Progress) -> None:
        if progress.phase != "hashing":
            return
        # Written after the instant: the next point's.
        chain.guest.qemu_io("vda", f"write -P 77 {20 * MIB} 64K")
        if end == "detached":
            stopping.set()
        elif end == "cancelled":
            engine.journal.wishes(task_id).touch()
        else:
            for image in Path(engine.settings.repositories["main"].path).rglob("*.partial/*.qcow2"):
                image.unlink()

    request = BackupRequest(domain=chain.guest.domain.name())
    error = {"detached": Detached, "cancelled": Cancelled, "unreadable": RepositoryUnusable}[end]
    with pytest.raises(error):
        backup(engine, request, Ties(task_id, see, stopping.is_set))
    if end == "detached":
        done = backup(Engine.of(engine.settings), request, Ties(task_id))
        assert isinstance(done, BackupResult)
        chain.taken.append((done, {"vda": reference}))
    else:
        assert committed(engine) == before
    assert_nothing_remains(engine, chain.guest)
    assert syncs(chain.take()) == {"vda": "incremental"}
    chain.prove_all()
