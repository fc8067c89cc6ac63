"""Short answers about this hypervisor. No state of their own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from virtvault.errors import VirtvaultError
from virtvault.models import CheckLine, DiskInfo
from workers import disks as disk_view
from workers.capabilities import MINIMUM, parse_as_of
from workers.engine import Engine
from workers.repository import open_repository

__all__ = ["check", "disks"]

TOOLS = {
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "prlimit": "util-linux",
}


def disks(engine: Engine, domain: str) -> list[DiskInfo]:
    """The disks of a running domain."""
    monitor = engine.hypervisor.monitor(engine.hypervisor.domain(domain))
    try:
        return [disk.info() for disk in disk_view.discover(monitor, monitor.xml())]
    finally:
        monitor.close()


def check(engine: Engine) -> list[CheckLine]:
    """Is this host ready? Each line with its mend."""
    lines = [_libvirt(engine)]
    missing = {tool: package for tool, package in TOOLS.items() if not shutil.which(tool)}
    lines.append(
        CheckLine("tools", "ok", ", ".join(TOOLS))
        if not missing
        else CheckLine(
            "tools",
            "failed",
            f"missing: {', '.join(missing)}",
            f"apt-get install {' '.join(sorted(set(missing.values())))}",
        )
    )
    lines.append(_apparmor(engine))
    lines.append(_scratch(engine))
    if not engine.settings.repositories:
        lines.append(
            CheckLine("repositories", "failed", "none", "Add [repositories.NAME] with its path.")
        )
    lines += [_repository(engine, name) for name in engine.settings.repositories]
    return lines


def _libvirt(engine: Engine) -> CheckLine:
    subject = f"libvirt at {engine.settings.libvirt_uri}"
    try:
        versions = engine.hypervisor.versions()
    except VirtvaultError as error:
        return CheckLine(subject, "failed", error.message, error.mend)
    detail = ", ".join(f"{name} {version}" for name, version in versions.items())
    qemu = parse_as_of(engine.settings.qemu_as_of) or tuple(
        int(n) for n in versions["qemu"].split(".")[:2]
    )
    if qemu < MINIMUM:
        needed = ".".join(map(str, MINIMUM))
        return CheckLine(subject, "failed", f"{detail}: QEMU {needed} is needed", "Upgrade QEMU.")
    if qemu < (7, 1):
        return CheckLine(
            subject,
            "warning",
            f"{detail}: before QEMU 7.1 a guest feels it where its backup's target stalls or fails",
            "Upgrade QEMU (and leave qemu_as_of empty); docs/older-qemu.md says what differs.",
        )
    return CheckLine(subject, "ok", detail)


def _apparmor(engine: Engine) -> CheckLine:
    enabled = Path("/sys/module/apparmor/parameters/enabled")
    if not enabled.exists() or enabled.read_text().strip() != "Y":
        return CheckLine("AppArmor", "ok", "not enabled")
    local = Path("/etc/apparmor.d/local/abstractions/libvirt-qemu")
    if local.exists() and engine.settings.runtime_dir in local.read_text():
        return CheckLine("AppArmor", "ok", "QEMU may use the runtime directory")
    return CheckLine(
        "AppArmor",
        "warning",
        f"{local} does not let QEMU use {engine.settings.runtime_dir}",
        "Install deploy/apparmor/virtvault there and restart the domains (or reload profiles).",
    )


def _scratch(engine: Engine) -> CheckLine:
    path = engine.settings.scratch
    try:
        path.mkdir(parents=True, exist_ok=True)
        stat = os.statvfs(path)
    except OSError as error:
        return CheckLine(f"scratch {path}", "failed", str(error.strerror), "Set scratch_dir.")
    free = stat.f_bavail * stat.f_frsize
    if free < engine.settings.scratch_limit:
        return CheckLine(
            f"scratch {path}",
            "warning",
            f"{free / 2**30:.1f} GiB free, less than scratch_limit lets one disk use",
            "Set scratch_dir to a larger disk, or a lower scratch_limit.",
        )
    return CheckLine(f"scratch {path}", "ok", f"{free / 2**30:.1f} GiB free")


def _repository(engine: Engine, name: str) -> CheckLine:
    """Write, read back, remove."""
    subject = f"repository {name}"
    try:
        repository = open_repository(engine.settings, name)
        probe = repository.path / f".check-{os.getpid()}"
        probe.write_text("virtvault")
        same = probe.read_text() == "virtvault"
        probe.unlink()
    except VirtvaultError as error:
        return CheckLine(subject, "failed", error.message, error.mend)
    except OSError as error:
        return CheckLine(
            subject,
            "failed",
            f"{engine.settings.repositories[name].path}: {error.strerror}",
            "Make room, or mend its mount and permissions.",
        )
    if not same:
        return CheckLine(subject, "failed", "does not give back what was written", "Replace it.")
    free = repository.free()
    verdict, mend = ("ok", "") if free > 2**30 else ("warning", "Make room.")
    return CheckLine(subject, verdict, f"{repository.path}, {free / 2**30:.1f} GiB free", mend)
