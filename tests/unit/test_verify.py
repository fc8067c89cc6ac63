"""The decisions of a verify: verdicts, the isolated domain, signs of life, pictures, words."""

from __future__ import annotations

import json
import random
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from dataclasses import replace
from pathlib import Path

import click
import pytest

from tests.unit.test_cli import A_POINT, POINT, TASK, VDA, FakeClient, FakeHandle, fake, run
from virtvault.cli.export import seconds
from virtvault.models import (
    BootReport,
    DiskVerdict,
    Point,
    PointStatus,
    Progress,
    ServeResult,
    SourceReport,
    Verdict,
    VerifyResult,
)
from workers.screenshot import png
from workers.verify_boot import alive, dead
from workers.verify_layer import BAD, GOOD, UNPROVEN, Finding
from workers.verify_sampling import GRANULE, covers, granules, sample, without
from workers.verify_verdict import Known, breaks, disk_verdict, worst
from workers.verify_xml import isolated

__all__ = ["fake"]

ONE, TWO, THREE, BESIDE = (f"2026010{n}T000000Z-{n * 8:08d}" for n in range(1, 5))


def point(id_: str, **parents: str) -> Point:
    disks = tuple(replace(VDA, target=target, parent=parent) for target, parent in parents.items())
    return replace(A_POINT, id=id_, disks=disks)


CHAIN = Known(
    {
        ONE: point(ONE, vda="", vdb=""),
        TWO: point(TWO, vda=ONE, vdb=ONE),
        THREE: point(THREE, vda=TWO, vdb=""),
        BESIDE: point(BESIDE, vda=""),
    },
    {},
)
WHOLE = {(p, t): Finding(GOOD, compared=10) for p in CHAIN.points for t in ("vda", "vdb")}


# -- verdicts --------------------------------------------------------------------------------------


def test_a_disk_is_good_only_where_its_whole_chain_is() -> None:
    assert disk_verdict(CHAIN, THREE, "vda", WHOLE) == DiskVerdict("vda", GOOD, "", 30)
    assert disk_verdict(CHAIN, THREE, "vdb", WHOLE) == DiskVerdict("vdb", GOOD, "", 10)
    damaged = {**WHOLE, (ONE, "vda"): Finding(BAD, "is not there")}
    on_it = disk_verdict(CHAIN, THREE, "vda", damaged)
    assert (on_it.verdict, on_it.detail) == (
        BAD,
        f"stands on point {ONE}, which is bad: is not there",
    )
    assert disk_verdict(CHAIN, THREE, "vdb", damaged).verdict == GOOD
    assert disk_verdict(CHAIN, BESIDE, "vda", damaged).verdict == GOOD
    assert breaks(CHAIN, ONE, {"vda"}) == (TWO, THREE)
    assert breaks(CHAIN, ONE, {"vdb"}) == (TWO,)
    assert breaks(CHAIN, BESIDE, {"vda"}) == ()


def test_damage_outranks_doubt_and_doubt_what_is_good() -> None:
    doubted = {**WHOLE, (TWO, "vda"): Finding(UNPROVEN, "no digests")}
    found = disk_verdict(CHAIN, THREE, "vda", doubted)
    assert (found.verdict, found.detail) == (UNPROVEN, f"stands on point {TWO}: no digests")
    both = {**doubted, (ONE, "vda"): Finding(BAD, "gone")}
    assert disk_verdict(CHAIN, THREE, "vda", both).verdict == BAD
    disks = [DiskVerdict("vda", GOOD), DiskVerdict("vdb", UNPROVEN, "x"), DiskVerdict("vdc", BAD)]
    assert worst(disks) == (BAD, "disk vdc: ")
    assert worst(disks[:2]) == (UNPROVEN, "disk vdb: x")
    assert worst(disks[:1]) == (GOOD, "")


def test_missing_circular_and_newer_links_are_told_apart() -> None:
    points = dict(CHAIN.points)
    del points[TWO]
    missing = disk_verdict(Known(points, {}), THREE, "vda", WHOLE)
    assert missing.verdict == BAD and f"point {TWO}" in missing.detail
    troubles = {TWO: "it is of version 9; upgrade virtvault."}
    assert disk_verdict(Known(points, troubles), THREE, "vda", WHOLE).verdict == UNPROVEN
    circle = {**CHAIN.points, ONE: point(ONE, vda=THREE)}
    assert disk_verdict(Known(circle, {}), THREE, "vda", WHOLE).verdict == BAD


# -- samples ---------------------------------------------------------------------------------------


def test_samples_are_of_what_is_there_and_not_marked() -> None:
    def bytes_(*numbers: int) -> list[tuple[int, int]]:
        return [(number * GRANULE, GRANULE) for number in numbers]

    # A byte on each side of a border reaches into both granules.
    assert granules([(GRANULE - 1, 2), *bytes_(5), (5 * GRANULE, 10)]) == [(0, 2), (5, 6)]
    assert granules([]) == []
    chance = random.Random(4)
    for _ in range(200):
        there, marked = (
            {chance.randrange(40) for _ in range(chance.randrange(40))} for _ in range(2)
        )
        left = without(granules(bytes_(*there)), granules(bytes_(*marked)))
        expected = sorted(number * GRANULE for number in there - marked)
        assert list(sample(left, 100)) == expected
        assert [o * GRANULE for o in range(41) if covers(left, o * GRANULE)] == expected
        some = list(sample(left, 3))
        assert len(some) == min(3, len(expected)) and set(some) <= set(expected)
        assert some == sorted(set(some))


# -- the booted point ------------------------------------------------------------------------------

HOSTILE = """
<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name><uuid>11111111-2222-4333-8444-555555555555</uuid>
  <memory unit='KiB'>1048576</memory>
  <memoryBacking><hugepages/></memoryBacking>
  <vcpu placement='static' cpuset='0-63'>64</vcpu>
  <cputune><vcpupin vcpu='0' cpuset='1'/></cputune>
  <os><type arch='x86_64' machine='q35'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/web.fd</nvram>
    <acpi><table type='slic'>/etc/shadow</table></acpi></os>
  <cpu mode='host-passthrough'><topology sockets='2' cores='32' threads='1'/></cpu>
  <on_poweroff>preserve</on_poweroff><on_crash>coredump-restart</on_crash>
  <sysinfo type='fwcfg'><entry name='opt/x' file='/etc/shadow'/></sysinfo>
  <devices>
    <emulator>/tmp/evil</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' io='native' iothread='1'/>
      <source file='/images/web.qcow2'><seclabel model='dac' relabel='yes'/></source>
      <backingStore type='file'><source file='/images/base.qcow2'/></backingStore>
      <target dev='vda' bus='virtio'/><serial>abc</serial><alias name='virtio-disk0'/>
      <boot order='1'/><address type='pci' domain='0x0000' bus='0x03' slot='0x00' function='0x0'/>
    </disk>
    <disk type='block' device='disk'><source dev='/dev/sdz'/><target dev='vdz'/></disk>
    <disk type='file' device='cdrom'><source file='/iso'/><target dev='sda' bus='sata'/></disk>
    <disk type='file' device='floppy'><source file='/etc/shadow'/><target dev='fda'/></disk>
    <interface type='bridge'><source bridge='br0'/></interface>
    <hostdev mode='subsystem' type='pci'/><redirdev bus='usb' type='spicevmc'/>
    <filesystem type='mount'><source dir='/'/><target dir='root'/></filesystem>
    <shmem name='s'/><vsock model='virtio'/><tpm model='tpm-crb'/><sound model='ich9'/>
    <graphics type='vnc' listen='0.0.0.0'/>
    <video><driver name='vhostuser'/><model type='qxl'/><address type='pci' slot='0x01'/></video>
    <input type='evdev'><source dev='/dev/input/event0'/></input><input type='tablet' bus='usb'/>
    <serial type='tcp'><source mode='connect' host='10.0.0.1' service='1'/></serial>
    <console type='pty'/><parallel type='dev'><source path='/dev/parport0'/></parallel>
    <channel type='unix'><source mode='bind' path='/tmp/x'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <rng model='virtio'><backend model='egd' type='tcp'/></rng>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memory model='nvdimm'><source><path>/dev/dax0</path></source></memory>
    <controller type='pci' index='0' model='pcie-root'/>
  </devices>
  <seclabel type='none'/>
  <qemu:commandline><qemu:arg value='-netdev'/></qemu:commandline>
</domain>"""


def test_of_a_stored_domain_only_its_machine_and_disks_are_started() -> None:
    made = isolated(
        HOSTILE,
        name="virtvault-verify-x",
        uuid="99999999-2222-4333-8444-555555555555",
        socket=Path("/run/s"),
        exports={"vda": "vda"},
        console=Path("/scratch/console.log"),
        nvram=Path("/scratch/nvram.fd"),
        cpus=2,
        user="+64055:+64055",
    )
    assert made.agent and made.screen
    root = ElementTree.fromstring(made.xml)
    devices = root.find("devices")
    assert devices is not None
    assert sorted((d.tag, d.get("type")) for d in devices) == [
        ("channel", "unix"),
        ("controller", "pci"),
        ("disk", "file"),
        ("disk", "network"),
        ("input", "tablet"),
        ("rng", None),
        ("serial", "file"),
        ("video", None),
    ]
    for word in (
        *("shadow", "evil", "/images", "/dev/sdz", "/iso", "br0", "10.0.0.1", "qxl", "vnc", "egd"),
        *("commandline", "hugepages", "cpuset", "topology", "preserve", "coredump", "alias"),
        *("vhostuser", "/tmp/x", "spice", "nvram/web.fd", "11111111-2222"),
    ):
        assert word not in made.xml, word
    disk = devices.find("disk[@type='network']")
    assert disk is not None
    kept = {part.tag: part.attrib for part in disk}
    assert kept["driver"] == {"name": "qemu", "type": "raw", "iothread": "1"}
    assert kept["source"] == {"protocol": "nbd", "name": "vda"}
    assert disk.find("source/host[@socket='/run/s'][@transport='unix']") is not None
    assert {"target", "serial", "boot", "address"} <= kept.keys()
    assert root.findtext("vcpu") == "2" and root.findtext("memory") == "1048576"
    nvram = root.find("os/nvram")
    assert nvram is not None and nvram.text == "/scratch/nvram.fd"
    assert not nvram.attrib  # libvirt, as root, would copy any file that a template names
    label = root.find("seclabel")
    assert label is not None and label.get("relabel") == "no"


@pytest.mark.parametrize(
    ("console", "lives", "dies"),
    [
        ("", "", ""),
        ("Debian GNU/Linux 12 web ttyS0\n\nweb login: ", "web login:", ""),
        ("web login: [   9.1] random: crng init done\n", "web login:", ""),
        ("[  OK  ] Reached target multi-user.target - Multi-User System.\n", "Multi-User", ""),
        ("INIT: Entering runlevel: 2\n", "runlevel: 2", ""),
        # What comes from firmware, kernel and initramfs proves nothing of the disks.
        ("GNU GRUB  version 2.06\nLoading Linux 6.1 ...\n", "", ""),
        ("[    1.0] Linux version 6.1\n[    2.0] Run /init as init process\n", "", ""),
        ("Welcome to Fedora Linux 39 dracut-059 (Initramfs)!\n", "", ""),
        ("[    2.1] systemd[1]: Running in initrd.\n", "", ""),
        ("[  OK  ] Reached target initrd-root-device.target - Initrd Root Device.\n", "", ""),
        ("[    3.1] Kernel panic - not syncing: VFS: Unable", "", "Kernel panic - not syncing"),
        ("ALERT!  UUID=x does not exist.  Dropping to a shell!\n", "", "Dropping to a shell"),
        ("BusyBox v1.36\n(initramfs) ", "", "(initramfs)"),
        ("Give root password for maintenance\n", "", "for maintenance"),
        ("error: no such device: 1234.\ngrub rescue> ", "", "grub rescue>"),
    ],
)
def test_signs_of_life_and_death_on_a_console(console: str, lives: str, dies: str) -> None:
    assert lives in alive(console) and bool(lives) == bool(alive(console))
    assert dies in dead(console) and bool(dies) == bool(dead(console))


def test_pictures_become_png() -> None:
    assert png(b"\x89PNG\r\n\x1a\nrest") == b"\x89PNG\r\n\x1a\nrest"
    red_blue = b"P6\n2 1\n255\n\xff\0\0\0\0\xff"
    made = png(red_blue)
    assert made.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", made[16:24]) == (2, 1)
    at = made.index(b"IDAT")
    length = int.from_bytes(made[at - 4 : at])
    assert zlib.decompress(made[at + 4 : at + 4 + length]) == b"\0\xff\0\0\0\0\xff"
    for wrong in (b"", b"GIF89a", red_blue[:-1]):
        with pytest.raises(ValueError, match=r"neither|cut off"):
            png(wrong)


# -- the command line ------------------------------------------------------------------------------


def verified(verdict: str, booted: bool | None = None) -> VerifyResult:
    boot = None
    if booted is not None:
        boot = BootReport(
            booted, 4.2, "the guest agent answers" if booted else "it ended", "boot.png"
        )
    found = Verdict(
        point=POINT,
        verdict=verdict,
        at="2026-01-31T04:05:06.123Z",
        host="hv1",
        task_id=TASK,
        detail="disk vda: vda.qcow2 is not what it was" if verdict == BAD else "",
        disks=(DiskVerdict("vda", verdict, "", 2**30),),
        breaks=(TWO, THREE) if verdict == BAD else (),
        boot=boot,
        source=SourceReport(256, 2**24),
    )
    times = ("2026-01-31T04:05:05.000Z", "2026-01-31T04:05:06.000Z")
    state = "bad" if verdict == BAD else "good"
    return VerifyResult(TASK, "hv1", "local", state, *times, (found,))


def test_verify_tells_what_is_bad_and_what_stands_on_it(fake: type[FakeClient]) -> None:
    fake.answers |= {"show": A_POINT, "verify": FakeHandle(verified(BAD))}
    result = run("verify", POINT, "--speed", "50M")
    assert result.exit_code == 1
    assert fake.asked[-1][1] == ([POINT],)
    assert fake.asked[-1][2]["repository"] == "local"
    assert fake.asked[-1][2]["speed"] == 50 * 2**20
    assert "1 of 1 bad" in result.stdout
    assert f"bad {POINT}: disk vda: vda.qcow2 is not what it was" in result.stdout
    assert f"on it stand {TWO}, {THREE}" in result.stdout
    assert "256 samples equal" in result.stdout
    result = run("verify", POINT, "--json")
    assert (result.exit_code, json.loads(result.stdout)["state"]) == (1, "bad")


def test_a_domain_is_all_its_points_the_unreadable_too(fake: type[FakeClient]) -> None:
    status = PointStatus(TWO, "local", A_POINT.repository_id, A_POINT.uuid, "broken", "cut off")
    fake.answers |= {
        "points": [A_POINT],
        "statuses": [status],
        "verify": FakeHandle(verified(GOOD, booted=False)),
    }
    result = run("verify", "web", "--boot")
    assert fake.asked[-1][1] == ([TWO, POINT],)
    assert result.exit_code == 1
    assert f"did not boot {POINT}: it ended" in result.stdout
    # A boot that an earlier verify saw fail is shown, and is not what was asked now.
    assert run("verify", "web").exit_code == 0
    fake.answers["verify"] = FakeHandle(verified(GOOD, booted=True))
    result = run("verify", "--all", "--boot")
    assert result.exit_code == 0
    assert "yes, 4.2 s" in result.stdout


def test_points_of_several_repositories_are_verified_one_by_one(fake: type[FakeClient]) -> None:
    other = replace(A_POINT, id=TWO, repository="away", repository_id="fedcba98")
    fake.answers |= {
        "points": [A_POINT, other],
        "statuses": [],
        "verify": FakeHandle(verified(GOOD)),
    }
    result = run("verify", "--all")
    assert result.exit_code == 2
    assert "in 2 repositories: local (0123abcd), away (fedcba98)" in result.stderr
    assert run("verify", "--all", "--repository", "away").exit_code == 0
    assert fake.asked[-1][1] == ([TWO],)
    assert run("verify", "--all", "--repository", "nowhere").exit_code == 2
    for wrong in (("verify",), ("verify", "web", "--all")):
        result = run(*wrong)
        assert result.exit_code == 2 and "or give --all" in result.stderr


def test_export_says_where_it_is_read_from(fake: type[FakeClient]) -> None:
    urls = {"vda": "nbd+unix:///vda?socket=/run/virtvault/s-1/nbd.sock"}
    instant = "2026-01-31T04:05:06.123Z"
    opened = Progress(TASK, "open", instant=instant, exports=urls)
    times = ("2026-01-31T04:05:05.000Z", "2026-01-31T04:07:05.000Z")
    done = ServeResult(TASK, POINT, "web", "hv1", "local", "timed out", *times)
    fake.answers["serve"] = FakeHandle(done, (opened,))
    result = run("export", POINT, "--disk", "vda", "--timeout", "1h30m")
    assert result.exit_code == 0
    named = {"host": "", "repository": "", "disks": ("vda",), "seconds": 5400, "force": False}
    assert fake.asked == [("serve", (POINT,), named)]
    assert urls["vda"] in result.stderr and f"virtvault cancel {TASK}" in result.stderr
    assert f"export of point {POINT} of web on hv1 timed out after 2:00" in result.stdout


@pytest.mark.parametrize("text", ["", "0s", "5", "2h30", "-1h", "1w", "h", "1h 30m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a time"):
        seconds(text)
