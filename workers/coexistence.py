"""Whether somebody else is at work on a domain: seen before a backup, and not fought with.

What was tried on QEMU 7.2 beside a backup of ours, and why all of it is refused:

- *mirror* (blockcopy, active blockcommit, storage migration): the way back from our filter leads
  past the mirror's own; with synchronous writes the guest then loses what it writes.
- *backup* (libvirt's, push or pull, and others'): QEMU refuses our filter beside theirs.
- *migration, save, memory snapshot*: a backup of several disks pauses and resumes the guest, which
  must stand still, or runs elsewhere by then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import libvirt

from virtvault.errors import DomainBusy, MonitorError, NotReachable
from workers.disks import FILTERS, Disk, Graph, active_node
from workers.hypervisor import Hypervisor, LibvirtMonitor

__all__ = ["require_quiet"]

log = logging.getLogger(__name__)

# What virsh domjobinfo calls them.
OPERATIONS = {
    libvirt.VIR_DOMAIN_JOB_OPERATION_START: "start",
    libvirt.VIR_DOMAIN_JOB_OPERATION_SAVE: "save",
    libvirt.VIR_DOMAIN_JOB_OPERATION_RESTORE: "restore",
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN: "incoming migration",
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT: "outgoing migration",
    libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT: "snapshot",
    libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_REVERT: "snapshot revert",
    libvirt.VIR_DOMAIN_JOB_OPERATION_DUMP: "dump",
    libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP: "backup",
    # VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_DELETE, of libvirt 9.0.
    10: "snapshot delete",
}
UNDER_WAY = (libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED)

# MigrationStatus in which nothing is under way, of qapi/migration.json.
NOT_MIGRATING = ("none", "completed", "failed", "cancelled")

# RunState (qapi/run-state.json) in which the disks are not this QEMU's to use, or about not to be.
RUN_STATES = {
    "inmigrate": (
        "is waiting to be migrated to here",
        "Back it up when it has arrived, or where it runs now.",
    ),
    "finish-migrate": ("is being migrated away", "Back it up where it runs afterwards."),
    "postmigrate": (
        "has been migrated away, or dumped or saved while it was paused, and does not hold its "
        "disks until it is resumed",
        "If it is to run here, `virsh resume {name}` and back it up again; else back it up there.",
    ),
    "save-vm": ("is having its state saved or its memory dumped", "Wait until that is done."),
    "restore-vm": ("is having its saved state restored", "Wait until that is done."),
    "colo": ("is replicated by COLO", "End the replication first."),
}

# Jobs of the whole machine; QEMU 6.0 and newer.
SNAPSHOT_JOBS = {
    "snapshot-save": "internal snapshot",
    "snapshot-load": "revert to an internal snapshot",
    "snapshot-delete": "deletion of an internal snapshot",
}

# By QEMU's job type: what virsh calls the operation, and how it is seen and ended there.
BLOCK_JOBS = {
    "commit": ("blockcommit", "virsh blockjob {name} {target}"),
    "stream": ("blockpull", "virsh blockjob {name} {target}"),
    "mirror": ("blockcopy", "virsh blockjob {name} {target}"),
    "backup": ("backup", "virsh domjobinfo {name}"),
}

# One that a worker left whose journal is lost; the guest is taken from it by the next backup.
OUR_FILTER = "vvc-"


@dataclass(frozen=True)
class Operation:
    """Somebody's operation, as a sentence about it, and what to do."""

    sentence: str
    mend: str


@dataclass(frozen=True)
class LibvirtView:
    """What libvirt knows of a domain's job.

    ``waited`` is in milliseconds, how long it has been at work without answering what at; -1 where
    it answered. ``backup`` is the XML of its backup, or empty.
    """

    stats: Mapping[str, Any] = field(default_factory=dict)
    backup: str = ""
    incoming: bool = False
    waited: int = -1


def require_quiet(
    hypervisor: Hypervisor, monitor: LibvirtMonitor, disks: Sequence[Disk] = ()
) -> None:
    """See that nobody else is at work on the domain or on one of ``disks``.

    Without disks only the domain is looked at: what is asked of libvirt answers, or says who is at
    work, also where QEMU would not answer a single command.

    :raises DomainBusy: somebody is; the message names the operation and how far it is, the mend
        what to wait for or which command ends it.
    :raises NotReachable: libvirt or QEMU does not answer.
    """
    busy = of_libvirt(_ask_libvirt(hypervisor, monitor), monitor.name) or _of_qemu(monitor)
    if disks and not busy:
        busy = _of_disks(monitor, disks)
    if busy:
        raise DomainBusy(busy.sentence, busy.mend)


# -- the domain as a whole -------------------------------------------------------------------------


def of_libvirt(view: LibvirtView, name: str) -> Operation | None:
    """The job that libvirt itself has under way on a domain."""
    if view.incoming:
        return Operation(
            f"Domain {name} is just being migrated to here.",
            "Back it up when it has arrived.",
        )
    if view.waited >= 0:
        return Operation(
            f"Domain {name} is busy: libvirt has been at work on it for {view.waited // 1000} s "
            "and answers nothing meanwhile, as it does while it takes an internal snapshot.",
            f"Wait until `virsh domjobinfo {name}` answers, then back up again.",
        )
    if view.backup:
        mode = ElementTree.fromstring(view.backup).get("mode", "push")  # noqa: S314 - libvirt wrote it
        return Operation(
            f"Domain {name} is busy: libvirt's {mode} backup is under way{_so_far(view.stats)}.",
            f"Wait for {'its end' if mode == 'push' else 'the tool that pulls it to end it'}, or "
            f"end it with `virsh domjobabort {name}`; then back up again.",
        )
    if view.stats.get("type") in UNDER_WAY:
        operation = OPERATIONS.get(view.stats.get("operation", 0), "job")
        return Operation(
            f"Domain {name} is busy: libvirt's {operation} is under way{_so_far(view.stats)}.",
            f"Wait for its end (`virsh domjobinfo {name}`), or end it with "
            f"`virsh domjobabort {name}`; then back up again.",
        )
    return None


def of_run_state(status: str, name: str) -> Operation | None:
    """What QEMU's run state says of an operation under way."""
    if status not in RUN_STATES:
        return None
    what, mend = RUN_STATES[status]
    return Operation(f"Domain {name} {what} (QEMU: {status}).", mend.format(name=name))


def of_migration(reply: Mapping[str, Any], name: str) -> Operation | None:
    """QEMU's migration, which also saves and dumps."""
    status = reply.get("status", "none")
    if status in NOT_MIGRATING:
        return None
    ram = reply.get("ram", {})
    done = _percent(ram.get("total", 0) - ram.get("remaining", 0), ram.get("total", 0))
    return Operation(
        f"Domain {name} is busy: QEMU is migrating or saving it ({status}{done}).",
        "Wait for its end, then back it up where it runs.",
    )


def of_whole_jobs(jobs: Iterable[Mapping[str, Any]], name: str) -> Operation | None:
    """A job of QEMU's that is on no single disk."""
    for job in jobs:
        if job["type"] in SNAPSHOT_JOBS and job["status"] != "concluded":
            return Operation(
                f"Domain {name} is busy: QEMU's {SNAPSHOT_JOBS[job['type']]} (job {job['id']}) is "
                f"{job['status']}.",
                "Wait until it is done, then back up again.",
            )
    return None


def _ask_libvirt(hypervisor: Hypervisor, monitor: LibvirtMonitor) -> LibvirtView:
    def ask(connection: libvirt.virConnect) -> LibvirtView:
        domain = connection.lookupByUUIDString(monitor.uuid)
        try:
            stats = domain.jobStats()
        except libvirt.libvirtError as error:
            code = error.get_error_code()
            if code == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
                # "migration statistics are available only on the source host"
                return LibvirtView(incoming=True)
            if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
                return LibvirtView(waited=_at_work(domain))
            log.info("domain %s: libvirt does not tell of its job: %s", monitor.name, error)
            stats = {}
        return LibvirtView(stats, _backup_xml(domain))

    what = f"question for the job of domain {monitor.name}"
    try:
        return hypervisor.call(what, ask)
    except NotReachable:
        waited = hypervisor.call(
            what, lambda c: _at_work(c.lookupByUUIDString(monitor.uuid), otherwise=-1)
        )
        if waited < 0:
            raise
        return LibvirtView(waited=waited)


def _at_work(domain: libvirt.virDomain, otherwise: int = 0) -> int:
    """Milliseconds of a job that lets nobody ask; libvirt tells that much at any time."""
    state, _, milliseconds = domain.controlInfo()
    return int(milliseconds) if state == libvirt.VIR_DOMAIN_CONTROL_JOB else otherwise


def _backup_xml(domain: libvirt.virDomain) -> str:
    try:
        xml: str = domain.backupGetXMLDesc()
    except (libvirt.libvirtError, AttributeError):  # none, or a libvirt before 6.0
        return ""
    return xml


def _of_qemu(monitor: LibvirtMonitor) -> Operation | None:
    name = monitor.name
    status, migration = _ask(monitor, "query-status", {}), _ask(monitor, "query-migrate", {})
    busy = (
        of_run_state(status.get("status", ""), name)
        or of_migration(migration, name)
        or of_whole_jobs(_ask(monitor, "query-jobs", []), name)
    )
    if not busy and migration.get("status") == "completed" and not status.get("running"):
        graph = None
        if monitor.capabilities.graph:
            graph = _ask(monitor, "x-debug-query-block-graph", None)
        return of_arrival(graph, name)
    return busy


def of_arrival(graph: Mapping[str, Any] | None, name: str) -> Operation | None:
    """Images that QEMU has not taken over: what it reads of them is from before their last writes.

    A domain that was paused while it was migrated to here, or restored paused from a saved state,
    takes its images over when it is resumed; until then its devices ask for no permission.

    :param graph: the reply of x-debug-query-block-graph, None where QEMU cannot tell.
    """
    devices = {
        node["id"]
        for node in (graph or {"nodes": ()})["nodes"]
        if node["type"] == "block-backend" and node["name"].startswith("/machine/")
    }
    if graph and all(edge["perm"] for edge in graph["edges"] if edge["parent"] in devices):
        return None
    return Operation(
        f"Domain {name} came here paused (migrated, or from a saved state) and has not run since: "
        "QEMU has not taken its disks over.",
        f"`virsh resume {name}`, for a moment at least; then back it up again.",
    )


def _ask(monitor: LibvirtMonitor, command: str, otherwise: Any) -> Any:
    """What QEMU answers; a QEMU that does not know the command keeps no backup from its turn."""
    try:
        return monitor.execute(command)
    except MonitorError as error:
        log.info("domain %s: not known whether somebody is at work: %s", monitor.name, error)
        return otherwise


# -- the disks -------------------------------------------------------------------------------------


def of_block_jobs(
    jobs: Iterable[Mapping[str, Any]],
    below: Mapping[str, frozenset[str]] | None,
    disk: Disk,
    name: str,
) -> Operation | None:
    """A block job on the disk or anywhere in its chain.

    ``below`` are the nodes each job works on or that stand under those; None where QEMU does not
    tell: then a job may be on any disk, and so is held to be on this one.
    """
    mine = {layer.node for layer in disk.layers}
    for job in jobs:
        if job.get("status") == "concluded":  # it waits to be dismissed and works no more
            continue
        id_ = job["device"]
        if below is not None and not below.get(id_, frozenset()) & mine:
            continue
        word, virsh = BLOCK_JOBS.get(job["type"], (job["type"], ""))
        state = (
            "is ready and waits for its pivot or its end"
            if job.get("ready")
            else f"is {job.get('status', 'running')}{_percent(job['offset'], job['len'])}"
        )
        if "libvirt" in id_ and virsh:
            see = virsh.format(name=name, target=disk.target)
            end = f"{see} --abort" if job["type"] != "backup" else f"virsh domjobabort {name}"
            pivot = f"`{see} --pivot` or " if job.get("ready") else ""
            return Operation(
                f"Disk {disk.target} of domain {name} is busy: libvirt's {word} (job {id_}) "
                f"{state}.",
                f"Wait for its end (`{see}`), or end it with {pivot}`{end}`; then back up again.",
            )
        return Operation(
            f"Disk {disk.target} of domain {name} is busy: {job['type']} job {id_} {state}.",
            "It is not libvirt's. Wait for its end, or ask whoever started it; "
            f"`virtvault cancel {id_} --yes` cancels it. Then back up again.",
        )
    return None


def nodes_below(reply: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """By block job the nodes that x-debug-query-block-graph shows it to reach."""
    children: dict[int, list[int]] = {}
    for edge in reply["edges"]:
        children.setdefault(edge["parent"], []).append(edge["child"])
    names = {node["id"]: node["name"] for node in reply["nodes"]}

    def reached(start: int) -> frozenset[str]:
        found, ahead = set(), [start]
        while ahead:
            for child in children.get(ahead.pop(), ()):
                if child not in found:
                    found.add(child)
                    ahead.append(child)
        return frozenset(names[id_] for id_ in found)

    return {
        node["name"]: reached(node["id"]) for node in reply["nodes"] if node["type"] == "block-job"
    }


def _of_disks(monitor: LibvirtMonitor, disks: Sequence[Disk]) -> Operation | None:
    if jobs := _ask(monitor, "query-block-jobs", []):
        below = None
        if monitor.capabilities.graph:
            graph = _ask(monitor, "x-debug-query-block-graph", None)
            below = nodes_below(graph) if graph is not None else None
        for disk in disks:
            if busy := of_block_jobs(jobs, below, disk, monitor.name):
                return busy
    for disk in disks:
        root = active_node(monitor, disk)
        if root is not None and root != disk.node:
            node = Graph(monitor).nodes.get(root, {})
            if busy := of_filter(node, disk, monitor.name):
                return busy
    return None


def of_filter(node: Mapping[str, Any], disk: Disk, name: str) -> Operation | None:
    """The node a disk's device is attached to: a filter that keeps a point in time without a job.

    Ours would stand beside it, and the guest's writes would not pass theirs any more.
    """
    if node.get("drv") not in FILTERS or node["node-name"].startswith(OUR_FILTER):
        return None
    return Operation(
        f"Disk {disk.target} of domain {name} is busy: somebody keeps a point in time of it (node "
        f"{node['node-name']}, {node['drv']}).",
        "Wait until the tool that made it takes it away, then back up again.",
    )


# -- words -----------------------------------------------------------------------------------------


def _so_far(stats: Mapping[str, Any]) -> str:
    """``, for 12 s, 34 % done`` as far as libvirt tells."""
    text = ""
    if "time_elapsed" in stats:
        text = f", for {stats['time_elapsed'] // 1000} s"
    for kind in ("data", "disk", "memory"):
        total = stats.get(f"{kind}_total", 0)
        if total:
            return text + _percent(stats.get(f"{kind}_processed", 0), total)
    return text


def _percent(done: int, total: int) -> str:
    return f", {100 * done // total} % done" if total else ""
