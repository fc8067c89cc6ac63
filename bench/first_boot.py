"""Time to first boot: `instant` beside `flatten` and a start, of one point in one run.

The guest has a disk with DATA MiB of data and a file system. Each way is timed from the request to
the guest's first sign of life on its console, and again until nothing depends on the repository.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

import libvirt

from tests.lab import DiskSpec, Guest, Hypervisor
from virtvault.models import BackupRequest, RestoreRequest
from virtvault.settings import RepositorySettings, Settings
from workers.backup import backup
from workers.engine import Engine, Ties
from workers.restore import restore

MIB = 2**20
DATA = int(sys.argv[1]) if len(sys.argv) > 1 else 2048


def main() -> None:
    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="vvbench-", dir="/var/tmp")
        directory = Path(stack.enter_context(temporary))
        directory.chmod(0o711)
        for name in ("guest", "repo"):
            (directory / name).mkdir()
        connection = stack.enter_context(Hypervisor()).connect()
        stack.callback(connection.close)
        # One to boot from and mount, one whose content is known.
        disks = [DiskSpec("vda", "qcow2", 96 * MIB), DiskSpec("vdb", "qcow2", (DATA + 64) * MIB)]
        guest = stack.enter_context(
            Guest(connection, directory / "guest", "vv-bench-boot", disks, boot=True)
        )
        guest.start()
        guest.wait_ready(180)
        for offset in range(0, DATA, 64):
            # Behind what mke2fs has written; the guest does not look there.
            guest.qemu_io("vdb", f"write -P {1 + offset % 250} {offset + 32}M 32M")
            guest.qemu_io("vdb", f"write -P {2 + offset % 250} {offset + 64}M 32M")
        settings = Settings(
            host="bench",
            state_dir=str(directory / "state"),
            runtime_dir=f"/run/{directory.name}",
            repositories={"main": RepositorySettings("main", str(directory / "repo"))},
            restore_roots=(str(directory),),
        )
        engine = Engine.of(settings)
        point = backup(engine, BackupRequest(domain=guest.name), Ties(uuid.uuid4().hex)).point
        guest.power_off()
        seconds = {mode: _first_boot(engine, connection, point, mode) for mode in MODES}
        for mode, (boot, alone) in seconds.items():
            print(f"{mode:8} first sign of life after {boot:6.1f} s, alone after {alone:6.1f} s")
        ratio = seconds["flatten"][0] / seconds["instant"][0]
        print(f"time to first boot, {DATA} MiB of data: flatten / instant = {ratio:.1f}")


MODES = ("flatten", "instant")


def _first_boot(
    engine: Engine, connection: libvirt.virConnect, point: str, mode: str
) -> tuple[float, float]:
    """Seconds until the guest spoke, and until the restore was over."""
    name = f"vv-bench-{mode}"
    request = RestoreRequest(point=point, name=name, mode=mode, start=True)
    ended: list[float] = []
    began = time.monotonic()

    def run() -> None:
        restore(engine, request, Ties(uuid.uuid4().hex))
        ended.append(time.monotonic() - began)

    thread = threading.Thread(target=run)
    thread.start()
    directory = Path(engine.settings.restore_roots[0], name)
    spoke = 0.0
    while not spoke:
        for console in directory.glob("*-console.log"):
            if "LAB-READY" in console.read_text(errors="replace"):
                spoke = time.monotonic() - began
        if not thread.is_alive() and not ended:
            raise SystemExit(f"{mode} failed")
        time.sleep(0.02)
    thread.join()
    domain = connection.lookupByName(name)
    domain.destroy()
    domain.undefine()
    for path in directory.iterdir():
        path.unlink()
    return spoke, ended[0]


if __name__ == "__main__":
    main()
