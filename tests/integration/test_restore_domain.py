"""A point becomes a new domain that starts, or its own domain's disks again."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.integration.conftest import MIB, Points, with_settings
from tests.integration.scenes import (
    VDA,
    VDB_RAW,
    Boot,
    TakePoints,
    domains_on,
    files,
    give_new_content,
    qemu_img,
)
from tests.integration.test_faults import tiny
from tests.integration.test_restore import OWN, assert_nothing_remains, run
from tests.lab import Guest, assert_same
from tests.lab.domain import qemu_user
from virtvault.errors import (
    DestinationExists,
    DomainBusy,
    InvalidRequest,
    NoRoom,
    RepositoryUnusable,
    UnknownDisk,
    UnknownDomain,
    VirtvaultError,
    WorkFailed,
)
from virtvault.models import Progress, RestoreRequest, RestoreResult
from workers import definitions
from workers.engine import Engine, Ties
from workers.hypervisor import Hypervisor
from workers.images import claim, publish
from workers.jobs import Detached
from workers.restore import restore

FLASH = Path("/usr/share/seabios/bios-256k.bin")
CDROM = "<disk type='file' device='cdrom'><source file='{}'/><target dev='sda' bus='sata'/></disk>"
NETWORK = "<interface type='user'><mac address='52:54:00:11:22:33'/></interface>"
PAUSED = libvirt.VIR_DOMAIN_START_PAUSED


@contextmanager
def made(connection: libvirt.virConnect, result: RestoreResult) -> Iterator[libvirt.virDomain]:
    """The domain that a restore made, taken away at the end."""
    domain = connection.lookupByUUIDString(result.domain_uuid)
    try:
        yield domain
    finally:
        if domain.isActive():
            domain.destroy()
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)


def new_name() -> str:
    return f"vv-{uuid.uuid4().hex[:8]}"


def assert_restored(chain: Points, number: int, result: RestoreResult) -> None:
    for disk in result.disks:
        reference = chain.taken[number][1][disk.target]
        spec = chain.guest.disks[disk.target]
        assert_same(Path(disk.path), disk.format, reference, spec.format)


def refused(
    engine: Engine, error: type[VirtvaultError], match: str, point: str, **request: Any
) -> None:
    """Refused with a mend; no file was made or changed, and no domain defined."""
    connection = engine.hypervisor.connection()

    roots = engine.settings.restore_roots

    def look() -> tuple[list[tuple[str, int]], list[str]]:
        found = [p for r in roots for p in files(r)]
        there = [(p, Path(p).stat().st_mtime_ns) for p in found if not OWN & set(Path(p).parts)]
        return there, domains_on(connection, *roots)

    before = look()
    with pytest.raises(error, match=match) as caught:
        restore(engine, RestoreRequest(point=point, **request), Ties(uuid.uuid4().hex))
    assert caught.value.mend
    assert look() == before
    assert_nothing_remains(engine)


# -- a new domain ----------------------------------------------------------------------------------


def with_firmware(guest: Guest, directory: Path) -> Path:
    """Give a domain firmware with variables; the file of these."""
    flash, variables = directory / "flash.fd", directory / "vars.fd"
    flash.write_bytes(FLASH.read_bytes())
    variables.write_bytes(b"boot entries".ljust(256 * 1024, b"\xff"))
    guest.power_off()
    xml = guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    xml = xml.replace(
        "</os>",
        f"<loader readonly='yes' type='pflash'>{flash}</loader><nvram>{variables}</nvram></os>",
    )
    guest.domain.connect().defineXML(xml)
    guest.start()
    return variables


def test_a_point_becomes_a_domain_of_its_own_that_runs_beside_the_old_one(
    boot: Boot,
    points: TakePoints,
    engine: Engine,
    connection: libvirt.virConnect,
    workdir: Path,
) -> None:
    medium = workdir / "guest" / "medium.iso"
    medium.write_bytes(bytes(MIB))
    chain = points(boot(VDA, VDB_RAW, extra_devices=CDROM.format(medium) + NETWORK))
    variables = with_firmware(chain.guest, workdir / "guest")
    give_new_content(chain.guest, 1)
    chain.take()
    chain.take(disks=("vda",))
    name = new_name()

    result = run(engine, chain.taken[0][0].point, to="", name=name, start=True)
    with made(connection, result) as domain:
        assert (result.name, result.to) == (name, str(workdir / name))
        assert domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
        assert chain.guest.is_active()
        domain.destroy()
        old, new = chain.guest.domain.XMLDesc(), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        assert domain.UUIDString() not in old
        macs = re.compile("<mac address='([^']+)'")
        assert macs.findall(new)
        assert not set(macs.findall(old)) & set(macs.findall(new))
        assert re.findall("<address type='pci'[^>]+>", new) == re.findall(
            "<address type='pci'[^>]+>", old
        )
        assert str(medium) not in new
        assert any("drive is empty" in note for note in result.notes)
        copy = workdir / name / f"{name}_VARS.fd"
        assert f"<nvram>{copy}</nvram>" in new
        assert copy.read_bytes() == variables.read_bytes()
        assert_restored(chain, 0, result)
        assert str(workdir / "guest") not in re.sub("<loader.*</loader>", "", new)
    # Of a point with one disk, or of one that was chosen, the domain has that disk alone.
    result = run(engine, chain.taken[1][0].point, to="one", name=name)
    with made(connection, result) as domain:
        assert not domain.isActive()
        assert "'vdb'" not in domain.XMLDesc()
        assert any(note.startswith("vdb: not restored") for note in result.notes)
    assert_nothing_remains(engine)


def test_a_domain_that_cannot_be_made_is_refused_before_the_first_byte(
    boot: Boot, points: TakePoints, engine: Engine, workdir: Path
) -> None:
    chain = points(boot(VDA))
    point = chain.take().point
    name = chain.guest.domain.name()
    refused(engine, DestinationExists, f"has a domain '{name}' already", point, name=name)
    closed = workdir / "closed"
    closed.mkdir(mode=0o700)
    request = {"name": new_name(), "to": str(closed / "new")}
    refused(engine, InvalidRequest, f"cannot enter {closed}", point, **request)
    xml = next((workdir / "repo").rglob("domain.xml"))
    text = xml.read_text()
    xml.write_text(text.replace("arch='x86_64'", "arch='vax'"))
    refused(engine, WorkFailed, "does not take the new domain", point, name=new_name())
    xml.write_text(text)
    with tiny(workdir / "tiny", "1M"):
        give_new_content(chain.guest, 1)
        point = chain.take().point
        for mode in ("flatten", "chain", "instant"):
            request = {"name": new_name(), "to": "tiny", "mode": mode}
            refused(engine, NoRoom, "bytes free and the restore needs up to", point, **request)


def test_a_domain_that_does_not_start_keeps_its_restored_disks(
    boot: Boot, points: TakePoints, engine: Engine, connection: libvirt.virConnect, workdir: Path
) -> None:
    chain = points(boot(VDA))
    chain.take()
    xml = next((workdir / "repo").rglob("domain.xml"))
    gone = "<kernel>/nowhere/vmlinuz</kernel></os>"
    xml.write_text(xml.read_text().replace("</os>", gone))
    name = new_name()
    with pytest.raises(WorkFailed, match="is defined, its disks are complete"):
        run(engine, chain.taken[0][0].point, to="", name=name, start=True)
    domain = connection.lookupByName(name)
    domain.undefine()
    assert_same(workdir / name / "vda.qcow2", "qcow2", chain.taken[0][1]["vda"], "qcow2")


def test_firmware_variables_that_are_there_are_not_overwritten(
    boot: Boot,
    points: TakePoints,
    engine: Engine,
    connection: libvirt.virConnect,
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chain = points(boot(VDA))
    with_firmware(chain.guest, workdir / "guest")
    point, name, out = chain.take().point, new_name(), workdir / "out"
    out.mkdir()
    theirs = out / f"{name}_VARS.fd"
    theirs.write_bytes(b"the only copy")
    for mode in ("flatten", "chain", "instant"):
        request = {"name": name, "to": "out", "mode": mode}
        refused(engine, DestinationExists, f"Already there: {theirs}", point, **request)
    assert theirs.read_bytes() == b"the only copy"
    theirs.unlink()

    def killed(hypervisor: Hypervisor, uuid_: str) -> None:
        begin(hypervisor, uuid_)
        raise Detached

    begin = definitions.start
    task = uuid.uuid4().hex
    request_ = RestoreRequest(point=point, to="out", name=name, start=True)
    with monkeypatch.context() as patched:
        patched.setattr(definitions, "start", killed)
        with pytest.raises(Detached):
            restore(engine, request_, Ties(task))
    changed = b"what its guest has set".ljust(256 * 1024, b"\xff")
    theirs.write_bytes(changed)
    result = restore(Engine.of(engine.settings), request_, Ties(task))
    with made(connection, result) as domain:
        assert domain.isActive()
        assert theirs.read_bytes() == changed


def test_a_damaged_definition_is_refused(
    boot: Boot, points: TakePoints, engine: Engine, workdir: Path
) -> None:
    point = points(boot(VDA)).take().point
    xml = next((workdir / "repo").rglob("domain.xml"))
    text = xml.read_bytes()
    for damaged in (text[:300], b"", b"\xff\xfe" + text):
        xml.write_bytes(damaged)
        for mode in ("flatten", "instant"):
            request = {"name": new_name(), "mode": mode}
            refused(engine, RepositoryUnusable, f"{xml} of point {point}", point, **request)


def test_nothing_is_written_where_a_dangling_link_leads(
    boot: Boot, points: TakePoints, engine: Engine, workdir: Path, tmp_path: Path
) -> None:
    point = points(boot(VDA)).take().point
    outside = tmp_path / "outside"
    (workdir / "out").mkdir()
    link = workdir / "out" / "vda.qcow2"
    link.symlink_to(outside)
    for mode in ("flatten", "chain", "instant"):
        request = {"name": new_name(), "to": "out", "mode": mode}
        refused(engine, DestinationExists, f"Already there: {link}", point, **request)
    with pytest.raises(DestinationExists, match=f"Already there: {link}"):
        claim(link)
    partial = workdir / "out" / "partial"
    partial.write_bytes(b"new")
    with pytest.raises(DestinationExists, match="appeared while"):
        publish(partial, link)
    assert not outside.exists()
    assert link.is_symlink()


# -- chain -----------------------------------------------------------------------------------------


def test_a_chain_is_copied_link_by_link_and_a_domain_starts_on_it(
    boot: Boot, points: TakePoints, engine: Engine, connection: libvirt.virConnect, workdir: Path
) -> None:
    chain = points(boot(VDA))
    for value in (1, 2, 3):
        give_new_content(chain.guest, value)
        chain.guest.qemu_io("vda", f"write -z {value + 1}M 512k")
        chain.take()
    ids = [result.point for result, _ in chain.taken]
    name = new_name()
    result = run(engine, ids[2], to="out", mode="chain", name=name, start=True)
    with made(connection, result) as domain:
        assert domain.isActive()
        domain.destroy()
        links = ["vda.qcow2", f"vda.1-{ids[1]}.qcow2", f"vda.2-{ids[0]}.qcow2"]
        assert sorted(p.name for p in (workdir / "out").glob("*.qcow2")) == sorted(links)
        # Moved as a whole it is the same still.
        (workdir / "out").rename(workdir / "moved")
        for link, below in zip(links, [*links[1:], None], strict=True):
            info = qemu_img("info", "-f", "qcow2", workdir / "moved" / link)
            assert (f"backing file: {below} " if below else "backing file") in info + (
                "" if below else "backing file"
            )
            assert ("backing file format: qcow2" in info) == bool(below)
            qemu_img("check", "-q", "-f", "qcow2", workdir / "moved" / link)
        for number, link in enumerate(reversed(links)):
            reference = chain.taken[number][1]["vda"]
            assert_same(workdir / "moved" / link, "qcow2", reference, "qcow2")
    assert_nothing_remains(engine)


# -- in place --------------------------------------------------------------------------------------


@pytest.fixture
def shut_off(boot: Boot, points: TakePoints) -> Points:
    """Two points of a domain with a qcow2 and a raw disk that has changed since and is shut off."""
    chain = points(boot(VDA, VDB_RAW))
    for value in (1, 2):
        give_new_content(chain.guest, value)
        chain.take()
    give_new_content(chain.guest, 3)
    chain.guest.shutdown_clean()
    return chain


def images(guest: Guest) -> list[str]:
    return sorted(p.name for p in guest.directory.iterdir() if "-vd" in p.name)


def test_a_domain_gets_its_disks_back_in_place(shut_off: Points, engine: Engine) -> None:
    guest = shut_off.guest
    before = images(guest)
    overlay = guest.directory / f"{guest.name}-vdb.raw"
    assert overlay.exists()
    result = run(engine, shut_off.taken[0][0].point, to="", in_place=True)
    assert [disk.path for disk in result.disks] == [str(guest.image(t)) for t in guest.disks]
    assert (result.name, result.domain_uuid) == (guest.name, guest.domain.UUIDString())
    assert any("next backup" in note for note in result.notes)
    assert_restored(shut_off, 0, result)
    assert images(guest) == before
    owner = guest.image("vda").stat()
    assert owner.st_uid == qemu_user().pw_uid
    assert_nothing_remains(engine)
    guest.start()
    give_new_content(guest, 4)
    assert {disk.sync for disk in shut_off.take().disks} == {"full"}
    shut_off.prove_all()


def test_an_overlay_becomes_a_flat_image_and_a_lost_one_is_there_again(
    shut_off: Points, engine: Engine
) -> None:
    guest = shut_off.guest
    top = guest.directory / f"{guest.name}-top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", guest.image("vda"), "-F", "qcow2", top)
    xml = guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    guest.domain.connect().defineXML(xml.replace(str(guest.image("vda")), str(top)))
    guest.image("vdb").unlink()
    result = run(engine, shut_off.taken[1][0].point, to="", in_place=True)
    assert [disk.path for disk in result.disks] == [str(top), str(guest.image("vdb"))]
    assert any(
        "flat image now" in note and str(guest.image("vda")) in note for note in result.notes
    )
    assert_restored(shut_off, 1, result)
    guest.start()


def test_what_must_not_be_replaced_is_not(
    shut_off: Points, engine: Engine, boot: Boot, connection: libvirt.virConnect, workdir: Path
) -> None:
    guest, point = shut_off.guest, shut_off.taken[0][0].point

    def refused_in_place(error: type[VirtvaultError], match: str, **request: Any) -> None:
        refused(engine, error, match, point, in_place=True, **request)

    refused_in_place(InvalidRequest, "chain does not go with in_place", mode="chain")
    guest.start()
    refused_in_place(DomainBusy, f"Domain {guest.name} runs")
    guest.domain.resume()
    guest.domain.managedSave()
    refused_in_place(InvalidRequest, "its memory is saved")
    guest.domain.managedSaveRemove()
    with qemu_io_open(guest.image("vda")):
        refused_in_place(DomainBusy, f"{guest.image('vda')} is in use")
    xml = guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    connection.defineXML(xml.replace("dev='vdb'", "dev='vdc'"))
    refused_in_place(UnknownDisk, "has no disk vdb")
    connection.defineXML(xml)
    clone = workdir / "guest" / "clone.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", guest.image("vda"), "-F", "qcow2", clone)
    other = boot(VDA)
    other.power_off()
    others = other.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    connection.defineXML(others.replace(str(other.image("vda")), str(clone)))
    refused_in_place(InvalidRequest, f"Domain {other.name} uses {guest.image('vda')}, too")
    connection.defineXML(others)
    guest.domain.undefine()
    refused_in_place(UnknownDomain, "its own domain only|has no domain")
    connection.defineXML(xml)


@contextmanager
def qemu_io_open(image: Path) -> Iterator[None]:
    """Another program has the image open for writing."""
    process = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("write 0 512\n")
    process.stdin.flush()
    assert "wrote" in process.stdout.readline() + process.stdout.readline()
    yield
    process.communicate("quit\n")


@pytest.mark.parametrize("moves", [1, 3])
def test_a_worker_killed_between_two_moves_leaves_no_mixed_domain_and_the_next_finishes(
    shut_off: Points, engine: Engine, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    guest = shut_off.guest
    before, left = images(guest), moves
    rename = Path.rename

    def dies(self: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            raise Detached  # nothing is undone on its way out, as after a SIGKILL
        left -= 1
        return rename(self, target)

    request = RestoreRequest(point=shut_off.taken[0][0].point, in_place=True)
    task = uuid.uuid4().hex
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", dies)
        with pytest.raises(Detached):
            restore(engine, request, Ties(task))
    with pytest.raises(libvirt.libvirtError):
        guest.start()
    result = restore(Engine.of(engine.settings), request, Ties(task))
    assert_restored(shut_off, 0, result)
    assert images(guest) == before
    assert_nothing_remains(engine)
    guest.start()


def test_a_domain_started_meanwhile_keeps_its_disks(
    shut_off: Points, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = shut_off.guest
    before = {image: (guest.directory / image).read_bytes() for image in images(guest)}
    from workers.restore.in_place import InPlace

    conclude = InPlace.conclude

    def started(self: InPlace) -> None:
        guest.start()
        conclude(self)

    monkeypatch.setattr(InPlace, "conclude", started)
    with pytest.raises(DomainBusy, match="is in use"):
        run(engine, shut_off.taken[0][0].point, to="", in_place=True)
    guest.power_off()
    assert images(guest) == sorted(before)
    assert guest.image("vdb").read_bytes() == before[guest.image("vdb").name]
    assert_nothing_remains(engine)


# -- devices ---------------------------------------------------------------------------------------


@pytest.fixture
def loop(workdir: Path) -> Iterator[Callable[[int], Path]]:
    """Block devices of any size."""
    made: list[str] = []

    def make(size: int) -> Path:
        file = workdir / f"loop-{len(made)}"
        with file.open("wb") as opened:
            opened.truncate(size)
        command = ["losetup", "--find", "--show", str(file)]
        made.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return Path(made[-1].strip())

    yield make
    for device in made:
        subprocess.run(["losetup", "--detach", device.strip()], check=True)


def test_a_disk_is_written_onto_a_device_that_is_free_and_large_enough(
    boot: Boot, points: TakePoints, engine: Engine, loop: Callable[[int], Path], workdir: Path
) -> None:
    chain = points(boot(VDA, VDB_RAW))
    give_new_content(chain.guest, 1)
    point = chain.take().point
    device, small = loop(64 * MIB + 4096), loop(64 * MIB - 512)
    with device.open("wb") as file:
        file.seek(32 * MIB)
        file.write(b"old" * 1000)  # past what is looked at; must be zeroes in the end
    allowed = with_settings(engine, restore_devices=(str(device), str(small)))

    def wanted(path: Path) -> dict[str, Any]:
        return {"devices": {"vda": str(path)}, "disks": ("vda",)}

    refused(engine, InvalidRequest, "outside the restore_devices", point, **wanted(device))
    refused(allowed, InvalidRequest, "outside the restore_", point, **wanted(Path("/dev/vda")))
    sizes = f"has {64 * MIB - 512} bytes and the disk {64 * MIB}"
    refused(allowed, NoRoom, sizes, point, **wanted(small))
    nowhere = {"devices": {"vda": str(device)}}
    refused(allowed, InvalidRequest, "vdb of point .* would go nowhere", point, **nowhere)
    held = {"devices": {"vdq": str(device)}}
    refused(allowed, UnknownDisk, "'vdq' is not among", point, **held)
    subprocess.run(["mke2fs", "-q", "-F", device], check=True)
    refused(allowed, DestinationExists, "TYPE=ext2", point, **wanted(device))
    (workdir / "mounted").mkdir()
    subprocess.run(["mount", device, workdir / "mounted"], check=True)
    refused(allowed, DomainBusy, "is in use: mounted", point, **wanted(device), force=True)
    subprocess.run(["umount", workdir / "mounted"], check=True)

    result = restore(
        allowed,
        RestoreRequest(point=point, to="out", devices={"vda": str(device)}, force=True),
        Ties(uuid.uuid4().hex),
    )
    assert [(d.path, d.format) for d in result.disks] == [
        (str(device), "raw"),
        (str(workdir / "out" / "vdb.qcow2"), "qcow2"),
    ]
    written = workdir / "written.raw"
    with device.open("rb") as file:
        written.write_bytes(file.read(64 * MIB))
    assert_same(written, "raw", chain.taken[0][1]["vda"], "qcow2")
    assert_nothing_remains(allowed)


def test_a_device_that_was_mounted_while_no_worker_held_it_is_written_to_no_more(
    boot: Boot, points: TakePoints, engine: Engine, loop: Callable[[int], Path]
) -> None:
    chain = points(boot(VDA))
    give_new_content(chain.guest, 1)
    device = loop(64 * MIB)
    allowed = with_settings(engine, restore_devices=(str(device),))
    point, task, stopping = chain.take().point, uuid.uuid4().hex, threading.Event()
    request = RestoreRequest(point=point, devices={"vda": str(device)}, speed=64 * 1024)

    def see(progress: Progress) -> None:
        if progress.phase == "copying" and progress.disks:
            stopping.set()
            with pytest.raises(OSError, match="busy"):
                os.open(device, os.O_RDWR | os.O_EXCL)

    with pytest.raises(Detached):
        restore(allowed, request, Ties(task, see, stopping.is_set))
    mounted = os.open(device, os.O_RDWR | os.O_EXCL)  # as a mount takes it
    with pytest.raises(DomainBusy, match="is in use: mounted"):
        restore(Engine.of(allowed.settings), request, Ties(task))
    os.close(mounted)
    assert_nothing_remains(allowed)
