"""A backup beside libvirt's own operations, and beside other tools': none of them is harmed.

First what is under way when a backup comes: it is named, the backup is refused, and neither it nor
the disks are changed. Then what an operator may do while a backup runs.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import pytest

from tests.integration.conftest import MIB, Points, with_settings
from tests.integration.scenes import (
    VDA,
    VDB_RAW,
    Boot,
    Running,
    TakePoints,
    assert_nothing_remains,
    bitmaps,
    block_jobs,
    committed,
    disk_of,
    files,
    flat_copy,
    image_of,
    node_of,
    nodes,
    pivoted,
    qemu_img,
    snapshot,
    syncs,
    until,
)
from tests.lab import DiskSpec, Guest, assert_same
from tests.lab.domain import own
from tests.lab.second_hypervisor import SecondHypervisor
from virtvault.errors import DomainBusy, DomainStopped, MonitorError
from workers import disks, questions
from workers.coexistence import require_quiet
from workers.engine import Engine

BIG = DiskSpec("vda", "qcow2", 512 * MIB)


# -- looks -----------------------------------------------------------------------------------------


def path(guest: Guest, name: str) -> Path:
    """A file that goes with the guest."""
    return guest.directory / f"{guest.name}-{name}"


def source(guest: Guest, target: str = "vda") -> Path:
    """The image that is the disk's active one now."""
    for disk in ElementTree.fromstring(guest.domain.XMLDesc()).iterfind("./devices/disk"):
        if disk.find(f"target[@dev='{target}']") is not None:
            return Path(disk.find("source").get("file"))  # type: ignore[union-attr, arg-type]
    raise KeyError(target)


def content(guest: Guest, name: str) -> Path:
    """A copy of what vda holds now."""
    return flat_copy(guest, "vda", source(guest), path(guest, name))


def everything(engine: Engine, guest: Guest) -> Any:
    """All that a backup could have changed."""
    settings = engine.settings
    return (
        nodes(guest),
        set(bitmaps(guest)),
        node_of(guest, "vda"),
        committed(engine),
        files(settings.runtime_dir, settings.scratch, f"{settings.state_dir}/runs"),
    )


def theirs(guest: Guest) -> dict[str, dict[str, Any]]:
    return {k: job for k, job in block_jobs(guest).items() if not k.startswith("virtvault-")}


def at_full_speed(guest: Guest) -> None:
    for job in theirs(guest):
        guest.qmp("block-job-set-speed", device=job, speed=0)


def assert_refused(engine: Engine, guest: Guest, chain: Points, words: str, mend: str) -> None:
    """The backup names what is under way, and has changed nothing."""
    before = everything(engine, guest)
    with pytest.raises(DomainBusy, match=words) as caught:
        chain.back_up()
    print(caught.value)
    assert guest.name in caught.value.message
    assert mend in caught.value.mend
    assert everything(engine, guest) == before


def assert_next_backup_is_right(engine: Engine, guest: Guest, chain: Points) -> None:
    reference = content(guest, "after")
    result = chain.back_up()
    assert_same(image_of(engine, result), "qcow2", reference, "qcow2")
    assert f"{node_of(guest, 'vda')}/{disk_of(result, 'vda').bitmap}" in bitmaps(guest)
    assert_nothing_remains(engine, guest)
    chain.prove_all()


def test_a_domain_is_marked_as_tainted_until_its_next_start(boot: Boot, points: TakePoints) -> None:
    guest = boot(VDA)
    points(guest).take()
    assert "custom monitor control commands issued" in str(guest.domain.messages(0))
    guest.domain.destroy()
    guest.start()
    assert guest.domain.messages(0) == []


# -- block jobs under way --------------------------------------------------------------------------


def begin_commit(guest: Guest) -> None:
    snapshot(guest, "vda", path(guest, "overlay"))
    guest.qemu_io("vda", "write -P 9 0 32M")
    commit(guest)


def commit(guest: Guest) -> None:
    guest.domain.blockCommit("vda", None, None, 1, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)


def pivot(guest: Guest) -> None:
    at_full_speed(guest)
    until(lambda: [job["ready"] for job in theirs(guest).values()] == [True], "the job")
    guest.qemu_io("vda", "write -P 77 20M 64k")
    until(lambda: pivoted(guest), "the pivot")
    guest.qemu_io("vda", "read -P 77 20M 64k")
    guest.qemu_io("vda", "write -P 78 21M 64k")


def end_commit(guest: Guest) -> None:
    pivot(guest)
    assert source(guest) == guest.image("vda")


def begin_lower_commit(guest: Guest) -> None:
    snapshot(guest, "vda", path(guest, "overlay"))
    guest.qemu_io("vda", "write -P 9 0 32M")
    snapshot(guest, "vda", path(guest, "upper"))
    lower_commit(guest)


def lower_commit(guest: Guest) -> None:
    guest.domain.blockCommit("vda", None, str(path(guest, "overlay")), 1, 0)


def begin_pull(guest: Guest) -> None:
    snapshot(guest, "vda", path(guest, "overlay"))
    guest.domain.blockPull("vda", 1, 0)


def end_by_itself(guest: Guest) -> None:
    at_full_speed(guest)
    until(lambda: not theirs(guest), "the job's end")
    chain = qemu_img("info", "-U", "--backing-chain", source(guest))
    assert str(guest.image("vda") if "upper" not in str(source(guest)) else "-overlay") not in chain


def begin_copy(guest: Guest, flags: int = 0) -> None:
    guest.domain.blockCopy(
        "vda",
        f"<disk type='file'><source file='{path(guest, 'copy')}'/><driver type='qcow2'/></disk>",
        {"bandwidth": MIB},
        libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB | flags,
    )


def begin_synchronous_copy(guest: Guest) -> None:
    begin_copy(guest, libvirt.VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES)


def end_copy(guest: Guest) -> None:
    pivot(guest)
    assert source(guest) == path(guest, "copy")


def add_node(guest: Guest, node: str) -> None:
    """Another tool's image, opened in QEMU."""
    image = path(guest, node)
    qemu_img("create", "-q", "-f", "qcow2", image, str(guest.disks["vda"].size))
    own(image)
    file = {"driver": "file", "filename": str(image)}
    guest.qmp("blockdev-add", **{"driver": "qcow2", "node-name": node, "file": file})


def begin_backup_by_qmp(guest: Guest) -> None:
    add_node(guest, "foreign")
    content(guest, "reference")
    job = {"job-id": "foreign-job", "device": node_of(guest, "vda"), "target": "foreign"}
    guest.qmp("blockdev-backup", **job, sync="full", speed=MIB)


def end_backup_by_qmp(guest: Guest) -> None:
    guest.qemu_io("vda", "write -P 77 20M 64k")
    at_full_speed(guest)
    until(lambda: not block_jobs(guest), "the job's end")
    guest.qmp("blockdev-del", **{"node-name": "foreign"})
    assert_same(path(guest, "foreign"), "qcow2", path(guest, "reference"), "qcow2")


def push_xml(guest: Guest, incremental: str = "") -> str:
    return (
        f"<domainbackup mode='push'>{incremental}<disks><disk name='vda' type='file'>"
        f"<target file='{path(guest, 'push')}'/><driver type='qcow2'/></disk></disks>"
        "</domainbackup>"
    )


def begin_push(guest: Guest) -> None:
    # libvirt takes no speed for it, so there must be enough to copy until it is given one here.
    guest.qemu_io("vda", "write -P 3 96M 384M")
    content(guest, "reference")
    guest.domain.backupBegin(push_xml(guest), None, 0)
    guest.qmp("block-job-set-speed", device="backup-vda-libvirt-1-format", speed=MIB)
    assert theirs(guest), "it has ended already"


def end_push(guest: Guest) -> None:
    guest.qemu_io("vda", "write -P 77 200M 64k")
    at_full_speed(guest)
    until(lambda: not theirs(guest), "the job's end")
    until(lambda: guest.domain.jobStats()["type"] == 0, "libvirt to see it")
    assert_same(path(guest, "push"), "qcow2", path(guest, "reference"), "qcow2")


def begin_pull_backup(guest: Guest) -> None:
    content(guest, "reference")
    guest.domain.backupBegin(
        "<domainbackup mode='pull'>"
        f"<server transport='unix' socket='{path(guest, 'socket')}'/><disks>"
        f"<disk name='vda' type='file'><scratch file='{path(guest, 'scratch')}'/></disk>"
        "</disks></domainbackup>",
        None,
        0,
    )


def end_pull_backup(guest: Guest) -> None:
    guest.qemu_io("vda", "write -P 77 20M 64k")
    read_exported(guest)
    guest.domain.abortJob()
    until(lambda: not theirs(guest), "the job's end")


def read_exported(guest: Guest) -> None:
    """What is exported is what the disk held when that began."""
    url = f"nbd+unix:///vda?socket={path(guest, 'socket')}"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", url, path(guest, "pulled"))
    assert_same(path(guest, "pulled"), "qcow2", path(guest, "reference"), "qcow2")


def begin_point_in_time(guest: Guest) -> None:
    """What fleecing tools do: a filter over the disk that keeps what it held, and no job."""
    add_node(guest, "foreign")
    content(guest, "reference")
    node = node_of(guest, "vda")
    cbw = {"driver": "copy-before-write", "node-name": "foreign-cbw"}
    guest.qmp("blockdev-add", **cbw, file=node, target="foreign")
    set_drive(guest, "foreign-cbw")
    access = {"driver": "snapshot-access", "node-name": "foreign-access", "file": "foreign-cbw"}
    guest.qmp("blockdev-add", **access)


def end_point_in_time(guest: Guest) -> None:
    guest.qemu_io("vda", "write -P 77 20M 64k")
    server = {"type": "unix", "data": {"path": str(path(guest, "socket"))}}
    guest.qmp("nbd-server-start", addr=server)
    export = {"id": "foreign-export", "node-name": "foreign-access", "name": "vda"}
    guest.qmp("block-export-add", type="nbd", **export)
    read_exported(guest)
    guest.qmp("block-export-del", id="foreign-export", mode="hard")
    guest.qmp("nbd-server-stop")
    until(lambda: not guest.qmp("query-block-exports"), "the export's end")
    guest.qmp("blockdev-del", **{"node-name": "foreign-access"})
    set_drive(guest, "libvirt-1-format")
    for node in ("foreign-cbw", "foreign"):
        guest.qmp("blockdev-del", **{"node-name": node})


def set_drive(guest: Guest, node: str) -> None:
    device = guest._monitor.qdev("vda")
    guest.qmp("qom-set", path=device, property="drive", value=node)


@pytest.mark.parametrize(
    ("begin", "end", "words", "mend"),
    [
        pytest.param(
            begin_commit,
            end_commit,
            "Disk vda .*libvirt's blockcommit",
            "--abort",
            id="blockcommit",
        ),
        pytest.param(
            begin_lower_commit,
            end_by_itself,
            "Disk vda .*libvirt's blockcommit .* running, .* % done",
            "--abort",
            id="blockcommit of a lower image",
        ),
        pytest.param(
            begin_pull, end_by_itself, "Disk vda .*libvirt's blockpull", "--abort", id="blockpull"
        ),
        pytest.param(
            begin_copy, end_copy, "Disk vda .*libvirt's blockcopy", "--abort", id="blockcopy"
        ),
        pytest.param(
            begin_synchronous_copy,
            end_copy,
            "Disk vda .*libvirt's blockcopy",
            "--abort",
            id="blockcopy with synchronous writes",
        ),
        pytest.param(
            begin_backup_by_qmp,
            end_backup_by_qmp,
            "Disk vda .*backup job foreign-job is running, .* % done",
            "virtvault cancel foreign-job --yes",
            id="blockdev-backup of another tool",
        ),
        pytest.param(
            begin_push,
            end_push,
            "libvirt's push backup is under way, for .* s, .* % done",
            "virsh domjobabort",
            id="push backup",
        ),
        pytest.param(
            begin_pull_backup,
            end_pull_backup,
            "libvirt's pull backup is under way, for .* s",
            "virsh domjobabort",
            id="pull backup",
        ),
        pytest.param(
            begin_point_in_time,
            end_point_in_time,
            r"Disk vda .*node foreign-cbw, copy-before-write",
            "Wait",
            id="point in time of another tool",
        ),
    ],
)
def test_a_disk_somebody_works_on_is_left_alone_until_that_is_done(
    boot: Boot,
    points: TakePoints,
    engine: Engine,
    begin: Callable[[Guest], None],
    end: Callable[[Guest], None],
    words: str,
    mend: str,
) -> None:
    guest = boot(BIG)
    chain = points(guest)
    guest.qemu_io("vda", "write -P 1 0 32M")
    chain.take()
    guest.qemu_io("vda", "write -P 2 4M 1M")
    begin(guest)
    assert_refused(engine, guest, chain, words, mend)
    end(guest)
    assert_next_backup_is_right(engine, guest, chain)


def test_a_job_that_is_ready_is_told_to_wait_for_its_pivot(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    guest.qemu_io("vda", "write -P 1 0 1M")
    begin_copy(guest)
    until(lambda: [job["ready"] for job in theirs(guest).values()] == [True], "the job")
    assert_refused(engine, guest, chain, "is ready and waits for its pivot", "--pivot")


def test_a_job_on_another_disk_keeps_nobody(boot: Boot, points: TakePoints, engine: Engine) -> None:
    guest = boot(VDA, VDB_RAW)
    chain = points(guest)
    for target in guest.disks:
        guest.qemu_io(target, "write -P 1 0 32M")
    add_node(guest, "foreign")
    job = {"job-id": "foreign-job", "device": node_of(guest, "vdb"), "target": "foreign"}
    guest.qmp("blockdev-mirror", **job, sync="full", speed=MIB)
    chain.take(disks=("vda",))
    assert list(block_jobs(guest)) == ["foreign-job"]
    with pytest.raises(DomainBusy, match=r"Disk vdb .*mirror job foreign-job"):
        chain.back_up()
    guest.qmp("block-job-cancel", device="foreign-job", force=True)
    until(lambda: not block_jobs(guest), "the job's end")
    chain.take()
    chain.prove_all()


def test_a_job_that_has_concluded_and_waits_to_be_dismissed_keeps_nobody(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    guest.qemu_io("vda", "write -P 1 0 1M")
    add_node(guest, "foreign")
    job = {"job-id": "foreign-job", "device": node_of(guest, "vda"), "target": "foreign"}
    guest.qmp("blockdev-backup", **job, sync="full", **{"auto-dismiss": False})
    until(lambda: block_jobs(guest)["foreign-job"]["status"] == "concluded", "the job's end")
    chain.take()
    chain.prove_all()
    assert list(block_jobs(guest)) == ["foreign-job"]


def test_a_checkpoint_of_libvirt_counts_on_and_its_incremental_backup_is_right(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    guest.qemu_io("vda", "write -P 1 0 8M")
    base = content(guest, "base")
    guest.domain.checkpointCreateXML("<domaincheckpoint><name>theirs</name></domaincheckpoint>", 0)
    guest.qemu_io("vda", "write -P 2 2M 1M")
    node = node_of(guest, "vda")
    before = bitmaps(guest)[f"{node}/theirs"]
    assert before["count"] == MIB
    chain.take()
    chain.take()
    assert bitmaps(guest)[f"{node}/theirs"] == before
    guest.qemu_io("vda", "write -P 3 5M 64k")
    now = content(guest, "now")
    guest.domain.backupBegin(push_xml(guest, "<incremental>theirs</incremental>"), None, 0)
    until(lambda: not block_jobs(guest), "the job's end")
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", base, path(guest, "push"))
    assert_same(path(guest, "push"), "qcow2", now, "qcow2")
    until(lambda: guest.domain.jobStats()["type"] == 0, "libvirt to see it")
    assert_next_backup_is_right(engine, guest, chain)


# -- the domain's own jobs under way ---------------------------------------------------------------


class Away:
    """An operation of libvirt's that blocks its caller, in a thread of its own."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._raised: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="operation under test")
        self._thread.start()

    def result(self) -> None:
        """Wait for its end; raises what it raised."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self._raised:
            raise self._raised[0]

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self._raised.append(error)


@contextmanager
def held(file: Path, call: Callable[[], object]) -> Iterator[Away]:
    """An operation that writes the guest's memory to ``file``, held in the middle of that.

    libvirt hands the data to a process of its own, which is stopped here: QEMU then waits.
    """
    away = Away(call)
    found: list[int] = []

    def process() -> bool:
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = line.read_bytes()
            except OSError:
                continue
            if b"iohelper" in text and str(file).encode() in text:
                found.append(int(line.parent.name))
        return bool(found)

    until(process, "libvirt's iohelper")
    os.kill(found[0], signal.SIGSTOP)
    try:
        yield away
    finally:
        os.kill(found[0], signal.SIGCONT)
    away.result()


def memory_snapshot(guest: Guest) -> None:
    guest.domain.snapshotCreateXML(
        "<domainsnapshot>"
        f"<memory snapshot='external' file='{path(guest, 'memory')}'/><disks>"
        f"<disk name='vda' snapshot='external'><source file='{path(guest, 'overlay')}'/></disk>"
        "</disks></domainsnapshot>",
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE,
    )


def dump(guest: Guest) -> None:
    guest.domain.coreDump(str(path(guest, "memory")), libvirt.VIR_DUMP_LIVE)


def memory_dump(guest: Guest) -> None:
    guest.domain.coreDumpWithFormat(
        str(path(guest, "memory")), 0, libvirt.VIR_DUMP_LIVE | libvirt.VIR_DUMP_MEMORY_ONLY
    )


def save(guest: Guest) -> None:
    guest.domain.save(str(path(guest, "memory")))


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        pytest.param(save, "libvirt's save is under way, for .* s, .* % done", id="save"),
        pytest.param(memory_snapshot, "libvirt's snapshot is under way", id="memory snapshot"),
        pytest.param(dump, "libvirt's dump is under way", id="dump"),
        pytest.param(memory_dump, "libvirt's dump is under way", id="memory-only dump"),
    ],
)
def test_a_domain_whose_memory_is_being_stored_is_left_alone_until_that_is_done(
    boot: Boot,
    points: TakePoints,
    engine: Engine,
    connection: libvirt.virConnect,
    operation: Callable[[Guest], None],
    words: str,
) -> None:
    guest = boot(VDA, boot=True, writer=True)
    guest.wait_ready()
    chain = points(guest)
    chain.take()
    with held(path(guest, "memory"), lambda: operation(guest)):
        until(lambda: guest.domain.jobStats().get("type", 0), "libvirt's job")
        assert_refused(engine, guest, chain, words, "virsh domjobabort")
    if operation is save:
        assert not guest.is_active()
        connection.restore(str(path(guest, "memory")))
    assert not guest.is_paused()
    guest.wait_ticks(guest.ticks() + 1)
    guest.suspend()
    assert_next_backup_is_right(engine, guest, chain)
    assert syncs(chain.back_up()) == {"vda": "incremental"}


def test_an_internal_snapshot_that_lets_nobody_ask_is_named_all_the_same(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA, boot=True)
    guest.wait_ready()
    impatient = with_settings(engine, qmp_timeout=1)
    monitor = impatient.hypervisor.monitor(guest.domain)
    qemu = int(Path(f"/run/libvirt/qemu/{guest.name}.pid").read_text())
    away = Away(
        lambda: guest.domain.snapshotCreateXML("<domainsnapshot><name>s</name></domainsnapshot>", 0)
    )
    until(lambda: guest.domain.controlInfo()[0] == libvirt.VIR_DOMAIN_CONTROL_JOB, "libvirt's job")
    # As a large guest would keep it: QEMU answers nothing while it writes its state.
    os.kill(qemu, signal.SIGSTOP)
    try:
        with pytest.raises(DomainBusy, match=r"for . s and answers nothing.*internal snapshot"):
            require_quiet(impatient.hypervisor, monitor)
    finally:
        os.kill(qemu, signal.SIGCONT)
    away.result()
    assert guest.domain.snapshotNum() == 1
    chain = points(guest)
    chain.take()
    chain.prove_all()


def test_a_paused_domain_that_was_dumped_is_backed_up_when_it_runs_again(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    guest.qemu_io("vda", "write -P 1 0 1M")
    chain.take()
    dump(guest)
    assert guest.qmp("query-status")["status"] == "postmigrate"
    assert_refused(engine, guest, chain, "does not hold its disks", f"virsh resume {guest.name}")
    guest.resume()
    guest.suspend()
    assert syncs(chain.take()) == {"vda": "incremental"}
    chain.prove_all()


@pytest.fixture
def second(workdir: Path) -> Iterator[SecondHypervisor]:
    with SecondHypervisor(workdir / "second") as started:
        yield started


@contextmanager
def migrating(
    guest: Guest, second: SecondHypervisor, **parameters: int
) -> Iterator[tuple[Away, libvirt.virConnect]]:
    """A live migration to the second hypervisor; whatever arrives there is ended."""
    there = second.connect()
    away = Away(
        lambda: guest.domain.migrate3(
            there,
            {libvirt.VIR_MIGRATE_PARAM_URI: second.channel, **parameters},
            libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNSAFE,
        )
    )
    try:
        yield away, there
    finally:
        for domain in there.listAllDomains():
            domain.destroy()
        there.close()


def test_a_domain_that_migrates_is_backed_up_neither_here_nor_there(
    boot: Boot, points: TakePoints, engine: Engine, second: SecondHypervisor
) -> None:
    guest = boot(VDA, boot=True, writer=True)
    guest.wait_ready()
    chain = points(guest)
    chain.take()
    with migrating(guest, second, **{libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: 1}) as (away, there):
        until(lambda: guest.qmp("query-migrate").get("status") == "active", "the migration")
        assert_refused(
            engine,
            guest,
            chain,
            "libvirt's outgoing migration is under way, for .* s, . % done",
            "virsh domjobabort",
        )
        over_there = with_settings(engine, libvirt_uri=second.uri, qmp_timeout=5).hypervisor
        monitor = over_there.monitor(there.lookupByName(guest.name))
        with pytest.raises(DomainBusy, match="just being migrated to here"):
            require_quiet(over_there, monitor)
        guest.domain.abortJob()
        with pytest.raises(libvirt.libvirtError, match="canceled by client"):
            away.result()
    guest.wait_ticks(guest.ticks() + 1)
    guest.suspend()
    assert_next_backup_is_right(engine, guest, chain)


# -- what an operator may do while a backup runs ---------------------------------------------------


def overlay(guest: Guest) -> None:
    snapshot(guest, "vda", path(guest, "overlay"))
    guest.qemu_io("vda", "write -P 9 0 4M")


def two_overlays(guest: Guest) -> None:
    overlay(guest)
    snapshot(guest, "vda", path(guest, "upper"))
    guest.qemu_io("vda", "write -P 10 0 2M")


def nothing(guest: Guest) -> None:
    pass


def checkpoint(guest: Guest) -> None:
    guest.domain.checkpointCreateXML("<domaincheckpoint><name>theirs</name></domaincheckpoint>", 0)
    guest.qemu_io("vda", "write -P 11 30M 64k")
    assert bitmaps(guest)[f"{bitmap_node(guest)}/theirs"]["count"] == 65536


def bitmap_node(guest: Guest) -> str:
    return next(n for n in nodes(guest) if n.startswith("libvirt-") and n.endswith("-format"))


def remove_checkpoint(guest: Guest) -> None:
    guest.domain.checkpointLookupByName("theirs").delete()
    assert f"{bitmap_node(guest)}/theirs" not in bitmaps(guest)


def pull(guest: Guest) -> None:
    guest.domain.blockPull("vda", 0, 0)
    end_by_itself(guest)


def push_backup(guest: Guest) -> None:
    content(guest, "reference")
    guest.domain.backupBegin(push_xml(guest), None, 0)
    end_push_small(guest)


def end_push_small(guest: Guest) -> None:
    guest.qemu_io("vda", "write -P 77 20M 64k")
    until(lambda: not theirs(guest), "the job's end")
    until(lambda: guest.domain.jobStats()["type"] == 0, "libvirt to see it")
    assert_same(path(guest, "push"), "qcow2", path(guest, "reference"), "qcow2")


def pull_backup(guest: Guest) -> None:
    begin_pull_backup(guest)
    end_pull_backup(guest)


def resize(guest: Guest) -> None:
    guest.domain.blockResize("vda", 128 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def resume_and_suspend(guest: Guest) -> None:
    guest.resume()
    guest.suspend()


def attach(guest: Guest) -> None:
    image = path(guest, "attached")
    qemu_img("create", "-q", "-f", "qcow2", image, "16M")
    own(image)
    guest.domain.attachDevice(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
        f"<source file='{image}'/><target dev='vdz' bus='virtio'/></disk>"
    )


@pytest.mark.parametrize(
    ("prepare", "operation", "refusal"),
    [
        pytest.param(overlay, commit, "Need a root block node", id="blockcommit"),
        pytest.param(two_overlays, lower_commit, "Need a root block node", id="lower blockcommit"),
        pytest.param(nothing, begin_copy, "Need a root block node", id="blockcopy"),
        pytest.param(nothing, resize, "Permission conflict .*resize", id="blockresize"),
        pytest.param(overlay, pull, "", id="blockpull"),
        pytest.param(nothing, push_backup, "", id="push backup"),
        pytest.param(nothing, pull_backup, "", id="pull backup"),
        pytest.param(nothing, checkpoint, "", id="checkpoint-create"),
        pytest.param(checkpoint, remove_checkpoint, "", id="checkpoint-delete"),
        pytest.param(nothing, resume_and_suspend, "", id="resume and suspend"),
        pytest.param(nothing, attach, "", id="attach-disk"),
    ],
)
def test_while_a_backup_runs_libvirt_does_or_refuses(
    boot: Boot,
    points: TakePoints,
    engine: Engine,
    prepare: Callable[[Guest], None],
    operation: Callable[[Guest], object],
    refusal: str,
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    guest.qemu_io("vda", "write -P 1 0 32M")
    chain.take()
    prepare(guest)
    reference = content(guest, "instant")
    with Running(engine, guest, sync="full") as running:
        guest.qemu_io("vda", "write -P 33 12M 1M")
        if refusal:
            with pytest.raises(libvirt.libvirtError, match=refusal):
                operation(guest)
        else:
            operation(guest)
        guest.qemu_io("vda", "write -P 34 13M 1M")
        assert block_jobs(guest), "our job ran beside it"
        running.hurry()
        result = running.result()
    assert_same(image_of(engine, result), "qcow2", reference, "qcow2")
    assert_nothing_remains(engine, guest)
    for number in (33, 34):
        guest.qemu_io("vda", f"read -P {number} {number - 21}M 1M")
    assert_next_backup_is_right(engine, guest, chain)


def test_a_push_backup_begun_beside_ours_and_ending_after_it_is_right(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(BIG)
    chain = points(guest)
    guest.qemu_io("vda", "write -P 1 0 32M")
    reference = content(guest, "instant")
    with Running(engine, guest) as running:
        guest.qemu_io("vda", "write -P 2 16M 1M")
        begin_push(guest)
        guest.qemu_io("vda", "write -P 4 150M 1M")
        running.hurry()
        result = running.result()
    assert_same(image_of(engine, result), "qcow2", reference, "qcow2")
    assert len(theirs(guest)) == 1
    end_push(guest)
    assert_next_backup_is_right(engine, guest, chain)


def test_io_limits_and_statistics_of_a_disk_are_the_same_during_and_after_a_backup(
    boot: Boot, engine: Engine
) -> None:
    guest = boot(VDA, boot=True, writer=True)
    guest.wait_ready()
    limit = {"total_bytes_sec": 50 * MIB}
    guest.domain.setBlockIoTune("vda", limit, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    before = guest.domain.blockStats("vda")
    with Running(engine, guest) as running:
        guest.wait_ticks(guest.ticks() + 1)
        during = guest.domain.blockStats("vda")
        assert guest.domain.blockIoTune("vda")["total_bytes_sec"] == 50 * MIB
        limit = {"total_bytes_sec": 60 * MIB}
        guest.domain.setBlockIoTune("vda", limit, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        assert guest.domain.jobStats()["type"] == 0
        running.hurry()
        running.result()
    guest.wait_ticks(guest.ticks() + 1)
    # Requests and bytes written, as virsh domblkstat shows them.
    assert before[2:4] < during[2:4] < guest.domain.blockStats("vda")[2:4]
    assert guest.domain.blockIoTune("vda")["total_bytes_sec"] == 60 * MIB
    guest.suspend()


@contextmanager
def backup_of_a_writing_guest(
    boot: Boot, points: TakePoints, engine: Engine, *disks: DiskSpec
) -> Iterator[tuple[Guest, Points, Running]]:
    """A full under way, after a first point, of a guest that writes since the instant."""
    guest = boot(*(disks or (VDA,)), boot=True, writer=True)
    guest.wait_ready()
    chain = points(guest)
    chain.take()
    guest.suspend()
    for target in guest.disks:
        guest.reference(target, path(guest, f"instant-{target}"))
    with Running(engine, guest, sync="full") as running:
        guest.resume()
        guest.wait_ticks(guest.ticks() + 1)
        yield guest, chain, running


def assert_point_and_next_are_right(
    engine: Engine, guest: Guest, chain: Points, running: Running
) -> None:
    assert block_jobs(guest), "our job ran beside it"
    guest.wait_ticks(guest.ticks() + 1)
    running.hurry()
    result = running.result()
    for disk in result.disks:
        image = image_of(engine, result, disk.target)
        assert_same(image, "qcow2", path(guest, f"instant-{disk.target}"), "qcow2")
    guest.wait_ticks(guest.ticks() + 1)
    guest.suspend()
    assert_next_backup_is_right(engine, guest, chain)


def test_an_internal_snapshot_is_refused_while_a_backup_runs_and_the_guest_runs_on(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    with backup_of_a_writing_guest(boot, points, engine) as (guest, chain, running):
        with pytest.raises(libvirt.libvirtError, match="does not support snapshots"):
            guest.domain.snapshotCreateXML("<domainsnapshot/>", 0)
        assert_point_and_next_are_right(engine, guest, chain, running)


@pytest.mark.parametrize("operation", [memory_snapshot, dump], ids=["memory snapshot", "dump"])
def test_memory_may_be_stored_while_a_backup_runs(
    boot: Boot, points: TakePoints, engine: Engine, operation: Callable[[Guest], None]
) -> None:
    with backup_of_a_writing_guest(boot, points, engine) as (guest, chain, running):
        operation(guest)
        assert_point_and_next_are_right(engine, guest, chain, running)


def test_a_reset_of_the_guest_does_not_disturb_its_backup(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    with backup_of_a_writing_guest(boot, points, engine) as (guest, chain, running):
        guest.domain.setLifecycleAction(
            libvirt.VIR_DOMAIN_LIFECYCLE_REBOOT,
            libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_RESTART,
            libvirt.VIR_DOMAIN_AFFECT_LIVE,
        )
        guest.domain.reset()
        assert block_jobs(guest)
        running.hurry()
        result = running.result()
        assert_same(image_of(engine, result), "qcow2", path(guest, "instant-vda"), "qcow2")
        guest.suspend()
    assert_next_backup_is_right(engine, guest, chain)


def test_a_disk_detached_while_it_is_backed_up_is_in_the_point_all_the_same(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    spec = DiskSpec("vdb", "qcow2", 64 * MIB)
    with backup_of_a_writing_guest(boot, points, engine, VDA, spec) as (guest, chain, running):
        detached = next(
            ElementTree.tostring(disk).decode()
            for disk in ElementTree.fromstring(guest.domain.XMLDesc()).iterfind("./devices/disk")
            if disk.find("target[@dev='vdb']") is not None
        )
        guest.domain.detachDevice(detached)
        until(lambda: "'vdb'" not in guest.domain.XMLDesc(), "the guest to let go of it")
        assert len(block_jobs(guest)) == 2
        running.hurry()
        result = running.result()
        for target in guest.disks:
            image = image_of(engine, result, target)
            assert_same(image, "qcow2", path(guest, f"instant-{target}"), "qcow2")
        chain.prove_all()
        chain.taken.clear()
        del guest.disks["vdb"]
        guest.suspend()
    assert_next_backup_is_right(engine, guest, chain)


def test_a_domain_saved_while_it_is_backed_up_fails_the_backup_cleanly_and_loses_nothing(
    boot: Boot, points: TakePoints, engine: Engine, connection: libvirt.virConnect
) -> None:
    with backup_of_a_writing_guest(boot, points, engine) as (guest, chain, running):
        before = [file for file in committed(engine) if ".partial" not in file]
        save(guest)
        assert isinstance(running.raised(), DomainStopped)
    assert committed(engine) == before
    assert_nothing_remains(engine, guest)
    connection.restore(str(path(guest, "memory")))
    guest.wait_ticks(guest.ticks() + 1)
    guest.suspend()
    assert syncs(chain.take()) == {"vda": "incremental"}
    chain.prove_all()


def test_a_revert_to_an_internal_snapshot_needs_our_bitmaps_gone(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    """QEMU loads no snapshot into a disk with bitmaps; libvirt 9 has ended the guest by then."""
    guest = boot(VDA, boot=True)
    guest.wait_ready()
    guest.domain.snapshotCreateXML("<domainsnapshot><name>s</name></domainsnapshot>", 0)
    chain = points(guest)
    guest.suspend()
    with Running(engine, guest) as running:
        with pytest.raises(libvirt.libvirtError, match="Device has active dirty bitmaps"):
            guest.domain.revertToSnapshot(guest.domain.snapshotLookupByName("s"))
        assert not guest.is_active()
        assert isinstance(running.raised(), DomainStopped)
    assert_nothing_remains(engine, guest)
    guest.start()
    guest.wait_ready()
    guest.suspend()
    chain.take()
    with pytest.raises(libvirt.libvirtError, match="Device has active dirty bitmaps"):
        guest.domain.revertToSnapshot(guest.domain.snapshotLookupByName("s"))
    assert not guest.is_active()
    guest.start()
    guest.wait_ready()
    node = node_of(guest, "vda")
    for name in list(bitmaps(guest)):
        guest.qmp("block-dirty-bitmap-remove", node=node, name=name.partition("/")[2])
    guest.domain.revertToSnapshot(guest.domain.snapshotLookupByName("s"))
    assert guest.is_active()
    guest.suspend()
    after = chain.take()
    assert syncs(after) == {"vda": "full"}
    chain.prove_all()


def test_a_migration_fails_while_a_backup_runs_and_the_guest_runs_on_here(
    boot: Boot, points: TakePoints, engine: Engine, second: SecondHypervisor
) -> None:
    with backup_of_a_writing_guest(boot, points, engine) as (guest, chain, running):
        with (
            migrating(guest, second) as (away, _),
            pytest.raises(libvirt.libvirtError, match='Failed to get "write" lock'),
        ):
            away.result()
        assert not guest.is_paused()
        assert_point_and_next_are_right(engine, guest, chain, running)


def test_a_guest_outlives_a_look_at_disks_on_which_a_stream_has_just_ended(
    boot: Boot, engine: Engine, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU 7.2 dies of a query for its nodes until somebody has dismissed the job."""
    monkeypatch.setattr(disks, "DISMISSED", 0.3)
    guest = boot(VDA)
    guest.qemu_io("vda", "write -P 7 1M 4M")
    snapshot(guest, "vda", workdir / "guest" / "overlay.qcow2")
    options = {"job-id": "user", "auto-dismiss": False}
    guest.qmp("block-stream", device=node_of(guest, "vda"), **options)
    until(lambda: block_jobs(guest)["user"]["status"] == "concluded", "the stream's end")
    with pytest.raises(MonitorError, match="has concluded and nobody dismisses it"):
        questions.disks(engine, guest.domain.name())
    assert guest.is_active()
    guest.qmp("job-dismiss", id="user")
    assert [disk.target for disk in questions.disks(engine, guest.domain.name())] == ["vda"]
    assert guest.is_active()
