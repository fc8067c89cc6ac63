"""What the integration tests share: a backup under way, looks into QEMU, things done to disks."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import libvirt

from tests.integration.conftest import MIB, Points
from tests.lab import DiskSpec, Guest
from virtvault.models import BackupRequest, BackupResult, ExportResult, Point, PointDisk, Progress
from workers.backup import backup
from workers.bitmap_names import PREFIX
from workers.engine import Engine, Ties, tag_of
from workers.repository.directory import LOCKS

Boot = Callable[..., Guest]
TakePoints = Callable[[Guest], Points]

VDA = DiskSpec("vda", "qcow2", 64 * MIB)
VDB_RAW = DiskSpec("vdb", "raw", 64 * MIB)


def until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait for a condition; TimeoutError where it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"gave up waiting for {what}")
        time.sleep(0.01)


class Running:
    """A backup in a thread of its own; its jobs crawl (1 MiB/s) until :meth:`hurry`."""

    def __init__(
        self,
        engine: Engine,
        guest: Guest,
        *,
        task_id: str = "",
        speed: int = MIB,
        report: Callable[[Progress], None] = lambda _: None,
        **request: Any,
    ) -> None:
        self.engine = engine
        self.guest = guest
        self.task_id = task_id or uuid.uuid4().hex
        self.tag = tag_of(self.task_id)
        self.stopping = threading.Event()
        self.copying = threading.Event()
        self._request = BackupRequest(domain=guest.domain.name(), speed=speed, **request)
        self._report = report
        self._result: BackupResult | None = None
        self._raised: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="backup under test")

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self.copying.is_set() or not self._thread.is_alive(), "the jobs to start")
        if not self.copying.is_set():
            self.result()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread.is_alive():
            self.engine.journal.wishes(self.task_id).touch()
            self._thread.join(30)
            assert not self._thread.is_alive()

    def hurry(self) -> None:
        """Take the speed limit off."""
        for target in self.guest.disks:
            if f"virtvault-{self.tag}-{target}" in block_jobs(self.guest):
                self.guest.qmp(
                    "block-job-set-speed", device=f"virtvault-{self.tag}-{target}", speed=0
                )

    def result(self, seconds: float = 60.0) -> BackupResult:
        """What the backup returned; raises what it raised."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the backup does not end"
        if self._raised is not None:
            raise self._raised
        assert self._result is not None
        return self._result

    def raised(self, seconds: float = 60.0) -> BaseException:
        """What the backup raised."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the backup does not end"
        assert self._raised is not None, f"it succeeded: {self._result}"
        return self._raised

    def export_pid(self, target: str, which: str) -> int:
        """The qemu-nbd of a disk's target (``t``) or scratch (``s``)."""
        runtime = Path(self.engine.settings.runtime_dir)
        return int((runtime / self.tag / f"{target}.{which}.pid").read_text())

    def _run(self) -> None:
        ties = Ties(self.task_id, self._see, self.stopping.is_set)
        try:
            self._result = backup(self.engine, self._request, ties)
        except BaseException as error:
            self._raised = error

    def _see(self, progress: Progress) -> None:
        if progress.phase == "copying" and progress.disks:
            self.copying.set()
        self._report(progress)


def block_jobs(guest: Guest) -> dict[str, dict[str, Any]]:
    return {job["device"]: job for job in guest.qmp("query-block-jobs")}


def bitmaps(guest: Guest) -> dict[str, dict[str, Any]]:
    """Every named bitmap in QEMU by ``node/name``; each bitmap hangs on one node."""
    return {
        f"{node['node-name']}/{bitmap['name']}": bitmap
        for node in guest.qmp("query-named-block-nodes", flat=True)
        for bitmap in node.get("dirty-bitmaps", ())
        if "name" in bitmap
    }


def nodes(guest: Guest) -> set[str]:
    return {node["node-name"] for node in guest.qmp("query-named-block-nodes", flat=True)}


def node_of(guest: Guest, target: str) -> str:
    """The node the guest's device is attached to."""
    device = guest._monitor.qdev(target)
    for block in guest.qmp("query-block"):
        if block.get("qdev") == device:
            return str(block["inserted"]["node-name"])
    raise KeyError(target)


def domains_on(connection: libvirt.virConnect, *texts: str | Path) -> list[str]:
    """The names of the domains whose XML holds one of ``texts``: others' tests have theirs."""
    found = []
    for domain in connection.listAllDomains():
        with contextlib.suppress(libvirt.libvirtError):  # it is just going
            xml = domain.XMLDesc()
            if any(str(text) in xml for text in texts):
                found.append(domain.name())
    return sorted(found)


def processes(text: str) -> list[str]:
    """Command lines that hold ``text``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


def files(*directories: str | Path) -> list[str]:
    return sorted(str(p) for d in directories for p in Path(d).rglob("*") if p.is_file())


def committed(engine: Engine, repository: str = "main") -> list[str]:
    """Every file in the repository but its identity and its locks, with its length."""
    root = Path(engine.settings.repositories[repository].path)
    return [
        f"{path} {Path(path).stat().st_size}"
        for path in files(root)
        if Path(path).name != "repository.json" and Path(path).parent.name != LOCKS
    ]


def assert_nothing_remains(engine: Engine, guest: Guest) -> None:
    """No node, job, process, file or journal of ours is left anywhere."""
    if guest.is_active():
        assert not {n for n in nodes(guest) if n.startswith("vv")}
        assert not block_jobs(guest)
        for target in guest.disks:
            assert not node_of(guest, target).startswith("vv")
    runtime = engine.settings.runtime_dir
    # The pause guard says its last words a moment after the backup's end.
    until(lambda: not processes(f"{runtime}/"), f"no process on {runtime}", 5)
    assert files(runtime, engine.settings.scratch, f"{engine.settings.state_dir}/runs") == []
    for repository in engine.settings.repositories.values():
        assert not list(Path(repository.path).rglob("*.partial*"))


def assert_one_bitmap_per_disk(guest: Guest, result: BackupResult) -> None:
    """Each disk of the point has of ours the bitmap that counts from it, and its witness."""
    ours = {name: b["recording"] for name, b in bitmaps(guest).items() if f"/{PREFIX}" in name}
    expected = {}
    for disk in result.disks:
        name = f"{node_of(guest, disk.target)}/{disk.bitmap}"
        expected |= {name: True, f"{name}.witness": False}
    assert ours == expected


def disk_of(point: BackupResult | Point, target: str) -> PointDisk:
    return next(disk for disk in point.disks if disk.target == target)


def syncs(result: BackupResult) -> dict[str, str]:
    return {disk.target: disk.sync for disk in result.disks}


def image_of(engine: Engine, result: BackupResult, target: str = "vda") -> Path:
    root = Path(engine.settings.repositories[result.repository].path)
    return root / result.uuid / result.point / f"{target}.qcow2"


def give_new_content(guest: Guest, value: int, targets: Iterable[str] = ()) -> None:
    """Overwrite 1 MiB at 2 MiB and a bit at 8 MiB + 512 of each disk."""
    for target in targets or guest.disks:
        guest.qemu_io(target, f"write -P {value} 2M 1M")
        guest.qemu_io(target, f"write -P {value} {8 * MIB + 512} 512")


def flat_copy(guest: Guest, target: str, overlay: Path, destination: Path) -> Path:
    """The disk's content as seen through an overlay that was put over its image."""
    guest.qemu_io(target, "flush")
    subprocess.run(
        ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "qcow2", overlay, destination],
        check=True,
    )
    return destination


def snapshot(guest: Guest, target: str, overlay: Path) -> None:
    """An external snapshot by libvirt."""
    guest.domain.snapshotCreateXML(
        f"<domainsnapshot><disks><disk name='{target}' snapshot='external'>"
        f"<source file='{overlay}'/></disk></disks></domainsnapshot>",
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA,
    )


def pivoted(guest: Guest) -> bool:
    """Ask for the pivot; libvirt accepts it only after it has heard that the job is ready."""
    try:
        guest.domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    except libvirt.libvirtError:
        return not block_jobs(guest)
    return True


def qemu_img(*arguments: str | Path) -> str:
    return subprocess.run(
        ["qemu-img", *arguments], check=True, capture_output=True, text=True
    ).stdout


class Open:
    """A snapshot export (``sync=none``) in a thread of its own, open when the block is entered."""

    def __init__(self, engine: Engine, guest: Guest, *, task_id: str = "", **request: Any) -> None:
        self.engine = engine
        self.task_id = task_id or uuid.uuid4().hex
        self.stopping = threading.Event()
        self.urls: dict[str, str] = {}
        self._request = BackupRequest(domain=guest.domain.name(), sync="none", **request)
        self._result: ExportResult | None = None
        self._raised: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="export under test")

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self.urls or not self._thread.is_alive(), "the export to open")
        if not self.urls and self._raised is not None:
            raise self._raised
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.close()

    def close(self) -> ExportResult:
        """End it by hand, as ``virtvault cancel`` does; gives what it returned."""
        self.engine.journal.wishes(self.task_id).touch()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the export does not close"
        if self._raised is not None:
            raise self._raised
        assert self._result is not None
        return self._result

    def raised(self, seconds: float = 60.0) -> BaseException:
        """What ended it."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the export does not end"
        assert self._raised is not None, f"it was closed: {self._result}"
        return self._raised

    def _run(self) -> None:
        try:
            result = backup(self.engine, self._request, Ties(self.task_id, self._see, self._stop))
            assert isinstance(result, ExportResult)
            self._result = result
        except BaseException as error:
            self._raised = error

    def _see(self, progress: Progress) -> None:
        self.urls = progress.exports or self.urls

    def _stop(self) -> bool:
        return self.stopping.is_set()
