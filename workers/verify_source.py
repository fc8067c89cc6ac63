"""Comparing a point with the live disk it is of, where no bitmap says that anything was written.

A bitmap only ever gains marks. So what it does not mark *after* a range was read had not been
written to by then, and must be what the point has: no instant is needed, and the guest runs on.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virtvault.errors import (
    DomainBusy,
    DomainStopped,
    InvalidRequest,
    MonitorError,
    UnknownDomain,
    WorkFailed,
)
from virtvault.models import DiskProgress, Point, SourceReport, VerifyRequest
from workers import disks as disk_view
from workers import witness
from workers.disks import Disk
from workers.engine import Engine, Ties, tag_of
from workers.hypervisor import LibvirtMonitor
from workers.isolation import unix
from workers.journal import HeldElsewhere, Run
from workers.nbd_reader import Extent, extents, layers, open_reader
from workers.plan import DiskPlan, decide
from workers.repository import DirectoryRepository
from workers.targets import qemu_uid
from workers.verify_place import Place
from workers.verify_sampling import GRANULE, Ranges, covers, granules, sample, without

__all__ = ["compare", "leave", "require_comparable"]

# Differences that are named; one is enough to know.
NAMED = 1000
# Seconds to wait for a backup of the domain that is under way.
PATIENCE = 10.0
# Looks at what differs, until the marks of writes that were in flight have come.
LOOKS = 3


def require_comparable(engine: Engine, repository: DirectoryRepository, point: Point) -> None:
    """See that the domain runs and has bitmaps that count from the point.

    :raises InvalidRequest: it does not run, or no disk of it can be compared.
    """
    with contextlib.closing(_monitor(engine, point)) as monitor:
        plans = _plans(monitor, repository, point)
        if not any(plan.parent == point.id for _, plan in plans.values()):
            raise _incomparable(point, plans)


def compare(
    engine: Engine,
    request: VerifyRequest,
    ties: Ties,
    run: Run,
    repository: DirectoryRepository,
    point: Point,
) -> SourceReport:
    """Compare ``request.samples`` granules of each disk.

    :raises InvalidRequest: as :func:`require_comparable`.
    :raises DomainBusy: a backup of the domain does not end.
    :raises WorkFailed: QEMU's NBD server is in use by somebody else.
    """
    place = Place(engine, ties.task_id)
    with _held(engine, ties, point), contextlib.closing(_monitor(engine, point)) as monitor:
        plans = _plans(monitor, repository, point)
        chosen = {target: plan for target, plan in plans.items() if plan[1].parent == point.id}
        if not chosen:
            raise _incomparable(point, plans)
        run.serving, run.targets = True, list(chosen)
        engine.journal.write(run)
        try:
            _listen(monitor, place)
        except MonitorError as error:
            run.serving = False
            engine.journal.write(run)
            raise WorkFailed(
                f"Domain {point.domain} cannot be compared now: {error.message}",
                "Where its NBD server runs already, an export or a migration uses it: wait for "
                "its end, then try again.",
            ) from error
        try:
            return _Comparison(engine, request, ties, repository, point, monitor, place).of(
                list(chosen)
            )
        finally:
            leave(monitor, place)
            place.remove()
            run.serving = False
            engine.journal.write(run)


def leave(monitor: LibvirtMonitor, place: Place) -> None:
    """Take out of a QEMU whatever a comparison has put there; safe where nothing is."""
    _unexport(monitor, place)
    for node, entry in disk_view.named_nodes(monitor).items():
        if any(bitmap.get("name") == place.mark for bitmap in entry.get("dirty-bitmaps", ())):
            monitor.execute("block-dirty-bitmap-remove", node=node, name=place.mark)
    # Without a socket of ours it is somebody else's server.
    if _socket(place).exists() and not monitor.execute("query-block-exports"):
        with contextlib.suppress(MonitorError):  # it does not run
            monitor.execute("nbd-server-stop")


class _Comparison:
    def __init__(
        self,
        engine: Engine,
        request: VerifyRequest,
        ties: Ties,
        repository: DirectoryRepository,
        point: Point,
        monitor: LibvirtMonitor,
        place: Place,
    ) -> None:
        self.engine = engine
        self.request = request
        self.ties = ties
        self.repository = repository
        self.point = point
        self.monitor = monitor
        self.place = place

    def of(self, targets: list[str]) -> SourceReport:
        samples = compared = 0
        differing: list[str] = []
        for target in targets:
            taken, bytes_, wrong = self._disk(target)
            samples, compared = samples + taken, compared + bytes_
            differing += [f"{target} {offset}" for offset in wrong]
        return SourceReport(samples, compared, tuple(differing[:NAMED]))

    def _disk(self, target: str) -> tuple[int, int, list[int]]:
        """Samples and bytes compared of one disk, and the offsets that differ unmarked."""
        chain = self.repository.chain(self.point, target, force=True)
        with self._exported(target) as (size, live, marked):
            # What is empty on both sides has nothing to tell.
            data = granules([*_map(live, data=True), *_data(extents(chain))])
            offsets = sample(without(data, marked), self.request.samples)
            ranges = [(offset, min(GRANULE, size - offset)) for offset in offsets]
            wrong = self._differing(target, live, chain, ranges)
        for _ in range(LOOKS if wrong else 0):
            with self._exported(target) as (_, _, marked):
                wrong = [offset for offset in wrong if not covers(marked, offset)]
            self.monitor.wait(0.2)
        return len(ranges), sum(length for _, length in ranges), wrong

    def _differing(
        self, target: str, live: dict[str, Any], chain: list[Path], ranges: list[tuple[int, int]]
    ) -> list[int]:
        runtime, found, done = self.engine.settings.runtime_dir, [], 0
        total = sum(length for _, length in ranges)
        with (
            open_reader(live, runtime, f"disk {target} of domain {self.point.domain}") as ours,
            open_reader(layers(chain), runtime, str(chain[0])) as stored,
        ):
            both = zip(ranges, ours.read(ranges), stored.read(ranges), strict=True)
            for (offset, length), now, then in both:
                if now != then:
                    found.append(offset)
                done += length
                self.ties.sample((DiskProgress(target, done, total, "running"),))
                self.ties.check(self.engine.journal)
        return found

    @contextmanager
    def _exported(self, target: str) -> Iterator[tuple[int, dict[str, Any], Ranges]]:
        """The live disk's size, the disk as a block node, and what its bitmaps mark by now.

        The transaction waits until no request of the guest is in flight: a write marks what it
        has written when it ends.
        """
        disk, plan = _plans(self.monitor, self.repository, self.point)[target]
        if plan.parent != self.point.id:
            raise WorkFailed(
                f"Disk {target} of domain {self.point.domain} was changed while it was compared: "
                f"{plan.reason}.",
                "Verify again.",
            )
        mark = {"node": disk.node, "name": self.place.mark}
        merge = {
            "node": disk.node,
            "target": self.place.mark,
            "bitmaps": [{"node": node, "name": name} for node, name in plan.sources],
        }
        self.monitor.execute(
            "transaction",
            actions=[
                {"type": "block-dirty-bitmap-add", "data": {**mark, "disabled": True}},
                {"type": "block-dirty-bitmap-merge", "data": merge},
            ],
        )
        try:
            self.monitor.execute(
                "block-export-add",
                type="nbd",
                id=self.place.mark,
                node_name=disk.node,
                name=target,
                writable=False,
                bitmaps=[self.place.mark],
            )
            live = {
                "driver": "nbd",
                "server": {"type": "unix", "path": str(_socket(self.place))},
                "export": target,
                "read-only": True,
            }
            # QEMU shows an NBD bitmap as block status: what is marked is "no data".
            bitmap = {**live, "x-dirty-bitmap": f"qemu:dirty-bitmap:{self.place.mark}"}
            yield disk.virtual_size, live, granules(_map(bitmap, data=False))
        finally:
            leave_disk(self.monitor, self.place, disk)


def leave_disk(monitor: LibvirtMonitor, place: Place, disk: Disk) -> None:
    """Take the export and its bitmap off a disk."""
    _unexport(monitor, place)
    with contextlib.suppress(MonitorError):
        monitor.execute("block-dirty-bitmap-remove", node=disk.node, name=place.mark)


def _plans(
    monitor: LibvirtMonitor, repository: DirectoryRepository, point: Point
) -> dict[str, tuple[Disk, DiskPlan]]:
    """What the next backup of each of the point's disks would do, were it made now."""
    found = {}
    for disk in disk_view.discover(monitor, monitor.xml()):
        if disk.skip or disk.target not in {d.target for d in point.disks}:
            continue
        plan = decide(disk, "auto", repository.id, repository.parents(point.uuid, disk.target))
        if reason := witness.trouble(monitor, plan.evidence) or witness.foreign(
            monitor, disk, plan.evidence
        ):
            plan = DiskPlan("full", reason=reason)
        found[disk.target] = disk, plan
    return found


def _incomparable(point: Point, plans: dict[str, tuple[Disk, DiskPlan]]) -> InvalidRequest:
    why = "; ".join(
        f"disk {target}: " + (plan.reason or f"its bitmap counts from point {plan.parent}")
        for target, (_, plan) in plans.items()
    )
    return InvalidRequest(
        f"Point {point.id} cannot be compared with domain {point.domain}: "
        f"{why or 'it has none of its disks any more'}.",
        "Only a domain's newest point can be; leave --against-source out, or back up first.",
    )


def _monitor(engine: Engine, point: Point) -> LibvirtMonitor:
    try:
        return engine.hypervisor.monitor(engine.hypervisor.domain(point.uuid))
    except (DomainStopped, UnknownDomain) as error:
        raise InvalidRequest(
            f"Point {point.id} cannot be compared with its source: {error.message}",
            "Start the domain, or leave --against-source out.",
        ) from error


@contextmanager
def _held(engine: Engine, ties: Ties, point: Point) -> Iterator[None]:
    """Hold the domain: a backup would remove the bitmap that is compared by.

    Under a name that is no run's: a backup that comes meanwhile waits a moment for it.
    """
    until = time.monotonic() + PATIENCE
    with contextlib.ExitStack() as stack:
        while True:
            try:
                hold = engine.journal.hold(point.uuid, f"verify-{tag_of(ties.task_id)}")
                stack.enter_context(hold)
                break
            except HeldElsewhere as held:
                if time.monotonic() > until:
                    raise DomainBusy(
                        f"Domain {point.domain} is held by task {held.holder}.", held.mend
                    ) from held
                ties.check(engine.journal)
                time.sleep(0.1)
        yield


def _listen(monitor: LibvirtMonitor, place: Place) -> None:
    place.make_sockets(qemu_uid(monitor.xml()))
    monitor.execute("nbd-server-start", addr=unix(str(_socket(place))))


def _socket(place: Place) -> Path:
    return place.sockets / "source.sock"


def _unexport(monitor: LibvirtMonitor, place: Place) -> None:
    def there() -> bool:
        exports = monitor.execute("query-block-exports")
        return any(export["id"] == place.mark for export in exports)

    if not there():
        return
    monitor.execute("block-export-del", id=place.mark, mode="hard")
    until = time.monotonic() + 5.0
    while there() and time.monotonic() < until:
        time.sleep(0.02)


def _map(node: dict[str, Any], *, data: bool) -> list[tuple[int, int]]:
    """Offset and length of what is data in a node, or of what is not."""
    done = subprocess.run(
        ["qemu-img", "map", "--output=json", f"json:{json.dumps(node)}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise WorkFailed(
            f"The live disk {node['export']} cannot be read: {done.stderr.strip()}.",
            "See the QEMU log of the domain.",
        )
    parts = json.loads(done.stdout)
    return [(part["start"], part["length"]) for part in parts if part["data"] == data]


def _data(found: list[Extent]) -> list[tuple[int, int]]:
    return [(start, length) for start, length, zero in found if not zero]
