"""What answers of libvirt and QEMU say of somebody else's work; all recorded of 9.0 and 7.2."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import libvirt
import pytest

from virtvault.errors import DomainBusy, MonitorError, NotReachable
from workers.coexistence import (
    LibvirtView,
    nodes_below,
    of_block_jobs,
    of_filter,
    of_libvirt,
    of_migration,
    of_run_state,
    of_whole_jobs,
    require_quiet,
)
from workers.disks import Disk, Layer
from workers.hypervisor import Hypervisor, LibvirtMonitor

VDA = Disk(
    target="vda",
    bus="virtio",
    device="disk",
    qom_path="/machine/peripheral/virtio-disk0/virtio-backend",
    source="/vda",
    format="qcow2",
    virtual_size=2**26,
    layers=(
        Layer("libvirt-2-format", "/o", "qcow2", {}),
        Layer("libvirt-1-format", "/b", "qcow2", {}),
    ),
)


def job(id_: str, type_: str, **more: Any) -> dict[str, Any]:
    return {
        "device": id_,
        "type": type_,
        "status": "running",
        "ready": False,
        "offset": 2**24,
        "len": 2**25,
        **more,
    }


# -- the domain as a whole -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stats", "said"),
    [
        (
            {"type": 2, "operation": 2, "time_elapsed": 531, "data_total": 9, "data_processed": 0},
            "libvirt's save is under way, for 0 s, 0 % done.",
        ),
        (
            {"type": 2, "operation": 5, "time_elapsed": 4017, "data_total": 268967936,
             "data_processed": 3096806},
            "libvirt's outgoing migration is under way, for 4 s, 1 % done.",
        ),
        # Before the first byte libvirt knows no total.
        (
            {"type": 2, "operation": 5, "time_elapsed": 312, "data_total": 0, "disk_total": 0},
            "libvirt's outgoing migration is under way, for 0 s.",
        ),
        (
            {"type": 2, "operation": 8, "time_elapsed": 9000, "memory_total": 4,
             "memory_processed": 3},
            "libvirt's dump is under way, for 9 s, 75 % done.",
        ),
        ({"type": 1, "operation": 99}, "libvirt's job is under way."),
    ],
)  # fmt: skip
def test_a_job_of_libvirt_is_named_in_its_words(stats: dict[str, int], said: str) -> None:
    busy = of_libvirt(LibvirtView(stats), "web")
    assert busy is not None
    assert busy.sentence == f"Domain web is busy: {said}"
    assert "`virsh domjobabort web`" in busy.mend


@pytest.mark.parametrize(("mode", "wait"), [("push", "its end"), ("pull", "the tool that pulls")])
def test_a_backup_of_libvirt_is_named_with_its_mode(mode: str, wait: str) -> None:
    stats = {"type": 2, "operation": 9, "time_elapsed": 65000, "disk_total": 8, "disk_processed": 1}
    busy = of_libvirt(LibvirtView(stats, f"<domainbackup mode='{mode}'/>"), "web")
    assert busy is not None
    assert f"libvirt's {mode} backup is under way, for 65 s, 12 % done" in busy.sentence
    assert wait in busy.mend


@pytest.mark.parametrize("stats", [{}, {"type": 0}, {"type": 3, "operation": 5}])
def test_no_job_and_one_that_is_over_keep_nobody(stats: dict[str, int]) -> None:
    assert of_libvirt(LibvirtView(stats), "web") is None


@pytest.mark.parametrize(
    "status", ["inmigrate", "finish-migrate", "postmigrate", "save-vm", "restore-vm", "colo"]
)
def test_run_states_of_an_operation_are_refused(status: str) -> None:
    busy = of_run_state(status, "web")
    assert busy is not None
    assert busy.sentence.startswith("Domain web ")
    assert f"QEMU: {status}" in busy.sentence
    assert busy.mend


@pytest.mark.parametrize(
    "status",
    ["running", "paused", "prelaunch", "suspended", "io-error", "guest-panicked", "watchdog", ""],
)
def test_run_states_of_the_guest_alone_keep_nobody(status: str) -> None:
    assert of_run_state(status, "web") is None


@pytest.mark.parametrize(
    "status",
    [
        "setup",
        "active",
        "cancelling",
        "pre-switchover",
        "device",
        "postcopy-active",
        "postcopy-paused",
        "postcopy-recover",
        "wait-unplug",
    ],
)
def test_a_migration_under_way_is_refused(status: str) -> None:
    busy = of_migration({"status": status, "ram": {"total": 200, "remaining": 150}}, "web")
    assert busy is not None
    assert f"({status}, 25 % done)" in busy.sentence
    without_numbers = of_migration({"status": status}, "web")
    assert without_numbers is not None
    assert f"({status})" in without_numbers.sentence


@pytest.mark.parametrize(
    "reply", [{}] + [{"status": s} for s in ("completed", "failed", "cancelled")]
)
def test_no_migration_and_one_that_is_over_keep_nobody(reply: dict[str, str]) -> None:
    assert of_migration(reply, "web") is None


def test_jobs_on_internal_snapshots_are_refused_until_they_conclude() -> None:
    running = {"id": "s", "type": "snapshot-save", "status": "running"}
    busy = of_whole_jobs([running], "web")
    assert busy is not None
    assert "QEMU's internal snapshot (job s) is running" in busy.sentence
    assert of_whole_jobs([{**running, "status": "concluded"}], "web") is None
    assert of_whole_jobs([{**running, "type": "create"}], "web") is None


# -- the disks -------------------------------------------------------------------------------------


def test_a_job_is_found_on_any_image_of_the_chain_and_not_on_another_disk() -> None:
    """An active commit of vda, recorded; shortened by what is not on the way."""
    nodes = {1: "#block226", 2: "libvirt-2-format", 3: "libvirt-1-format", 6: "libvirt-9-format"}
    recorded = {
        "nodes": [{"id": n, "name": name, "type": "block-driver"} for n, name in nodes.items()]
        + [
            {"id": 4, "name": "commit-vda-libvirt-2-format", "type": "block-job"},
            {"id": 5, "name": "", "type": "block-backend"},
            {"id": 7, "name": "copy-vdb-libvirt-9-format", "type": "block-job"},
        ],
        "edges": [
            {"parent": p, "child": c, "name": n}
            for p, n, c in [
                (1, "backing", 2),
                (2, "backing", 3),
                (4, "main node", 1),
                (4, "source", 2),
                (4, "target", 3),
                (5, "root", 3),
                (7, "main node", 6),
            ]
        ],
    }
    below = nodes_below(recorded)
    assert below == {
        "commit-vda-libvirt-2-format": {"#block226", "libvirt-2-format", "libvirt-1-format"},
        "copy-vdb-libvirt-9-format": {"libvirt-9-format"},
    }
    on_vdb, on_vda = (
        job("copy-vdb-libvirt-9-format", "mirror"),
        job("commit-vda-libvirt-2-format", "commit"),
    )
    assert of_block_jobs([on_vdb], below, VDA, "web") is None
    busy = of_block_jobs([on_vdb, on_vda], below, VDA, "web")
    assert busy is not None
    assert busy.sentence == (
        "Disk vda of domain web is busy: libvirt's blockcommit (job commit-vda-libvirt-2-format) "
        "is running, 50 % done."
    )
    assert "`virsh blockjob web vda --abort`" in busy.mend
    assert "--pivot" not in busy.mend
    ready = of_block_jobs([{**on_vda, "ready": True}], below, VDA, "web")
    assert ready is not None
    assert "`virsh blockjob web vda --pivot`" in ready.mend


def test_where_qemu_does_not_tell_a_jobs_nodes_it_may_be_on_any_disk() -> None:
    assert of_block_jobs([job("drive-virtio-disk5", "mirror")], None, VDA, "web") is not None


def test_a_job_that_is_not_libvirts_is_not_ended_with_virsh() -> None:
    busy = of_block_jobs([job("nightly", "backup", len=0)], None, VDA, "web")
    assert busy is not None
    assert "backup job nightly is running." in busy.sentence
    assert "virsh" not in busy.mend
    assert "`virtvault cancel nightly --yes`" in busy.mend


def test_a_concluded_job_works_no_more() -> None:
    assert of_block_jobs([job("j", "backup", status="concluded")], None, VDA, "web") is None


@pytest.mark.parametrize(
    ("name", "driver", "refused"),
    [
        ("fleecing", "copy-before-write", True),
        ("#block122", "backup-top", True),
        ("vvc-01234567-vda", "copy-before-write", False),
        ("libvirt-CoR-vda", "copy-on-read", False),
        ("libvirt-2-format", "qcow2", False),
    ],
)
def test_only_somebodys_point_in_time_over_a_disk_is_refused(
    name: str, driver: str, refused: bool
) -> None:
    assert (of_filter({"node-name": name, "drv": driver}, VDA, "web") is not None) is refused


# -- asking ----------------------------------------------------------------------------------------


class Refusal(libvirt.libvirtError):  # type: ignore[misc]
    def __init__(self, code: int) -> None:
        super().__init__("as libvirt says it")
        self.err = (code, libvirt.VIR_FROM_QEMU, "as libvirt says it", 2, "", "", "", -1, -1)


class FakeDomain:
    """virDomain: each call returns, or raises, what it was given."""

    def __init__(self, **answers: Any) -> None:
        quiet = {
            "jobStats": {"type": 0},
            "backupGetXMLDesc": Refusal(libvirt.VIR_ERR_NO_DOMAIN_BACKUP),
            "controlInfo": [libvirt.VIR_DOMAIN_CONTROL_OK, 0, 0],
        }
        for name, answer in {**quiet, **answers}.items():
            setattr(self, name, self._call(answer))

    def _call(self, answer: Any) -> Callable[[], Any]:
        def call() -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


class FakeHypervisor:
    """Runs what it is told on the fake domain; the first ``silent`` calls get no answer."""

    def __init__(self, domain: FakeDomain, silent: int = 0) -> None:
        self.domain, self.silent = domain, silent

    def call(self, what: str, function: Callable[[Any], Any]) -> Any:
        if self.silent:
            self.silent -= 1
            raise NotReachable(f"{what} did not answer", "")
        return function(self)

    def lookupByUUIDString(self, uuid: str) -> FakeDomain:
        return self.domain


class FakeMonitor:
    name, uuid = "web", "0"

    def __init__(self, **replies: Any) -> None:
        self.replies = replies

    def execute(self, command: str) -> Any:
        reply = self.replies.get(command.replace("-", "_"))
        if reply is None:
            raise MonitorError(f"QEMU does not know {command}")
        return reply


RUNNING = {"query_status": {"status": "running"}, "query_migrate": {}, "query_jobs": []}


def ask(domain: FakeDomain, silent: int = 0, **replies: Any) -> None:
    require_quiet(
        cast(Hypervisor, FakeHypervisor(domain, silent)),
        cast(LibvirtMonitor, FakeMonitor(**{**RUNNING, **replies})),
    )


def test_a_quiet_domain_may_be_backed_up() -> None:
    ask(FakeDomain())


def test_the_destination_of_a_migration_is_known_by_how_libvirt_declines_the_question() -> None:
    with pytest.raises(DomainBusy, match="is just being migrated to here"):
        ask(FakeDomain(jobStats=Refusal(libvirt.VIR_ERR_OPERATION_UNSUPPORTED)))


def test_a_lock_that_libvirt_does_not_get_is_somebody_at_work() -> None:
    control = [libvirt.VIR_DOMAIN_CONTROL_JOB, 0, 42000]
    timeout = Refusal(libvirt.VIR_ERR_OPERATION_TIMEOUT)
    with pytest.raises(DomainBusy, match="at work on it for 42 s"):
        ask(FakeDomain(jobStats=timeout, controlInfo=control))
    with pytest.raises(DomainBusy, match="at work on it for 42 s"):
        ask(FakeDomain(controlInfo=control), silent=1)


def test_a_libvirt_that_hangs_without_a_job_is_not_called_busy() -> None:
    with pytest.raises(NotReachable):
        ask(FakeDomain(), silent=1)


@pytest.mark.parametrize("code", [libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_INTERNAL_ERROR])
def test_what_cannot_be_asked_keeps_nobody_and_is_logged(
    code: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "workers.coexistence")
    old = FakeDomain(jobStats=Refusal(code), backupGetXMLDesc=AttributeError("before libvirt 6.0"))
    ask(old, query_migrate=None, query_jobs=None)
    assert "libvirt does not tell" in caplog.text
    assert "QEMU does not know query-jobs" in caplog.text
