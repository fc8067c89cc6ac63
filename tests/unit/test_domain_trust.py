"""A stored XML that somebody else wrote: nothing of it runs, opens or reads what is the host's."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from workers.domain_xml import NewDisk, redefine

DIRECTORY = "/restores/new"


def new(
    devices: str = "", rest: str = "", os: str = "<type>hvm</type>"
) -> tuple[ElementTree.Element, str, str]:
    """The new domain, its text, and its notes."""
    text, notes = redefine(
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        f"<name>old</name><os>{os}</os>{rest}<devices>{devices}</devices></domain>",
        name="new",
        uuid="33333333-3333-3333-3333-333333333333",
        disks={"vda": NewDisk(f"{DIRECTORY}/vda.qcow2", "qcow2")},
        directory=DIRECTORY,
        nvram=f"{DIRECTORY}/new_VARS.fd",
    )
    return ElementTree.fromstring(text), text, " | ".join(notes)


SOURCE = "<source path='/evil'/>"
FORBIDDEN_DEVICES = {
    "emulator": "<emulator>/evil</emulator>",
    "script": "<interface type='ethernet'><script path='/evil'/></interface>",
    "downscript": "<interface type='bridge'><downscript path='/evil'/></interface>",
    "vhostuser": "<interface type='vhostuser'><source type='unix' path='/evil'/></interface>",
    "vdpa": "<interface type='vdpa'><source dev='/evil'/></interface>",
    "passt": "<interface type='user'><backend type='passt' logFile='/evil'/></interface>",
    "serial dev": f"<serial type='dev'>{SOURCE}</serial>",
    "serial pipe": f"<serial type='pipe'>{SOURCE}</serial>",
    "serial unix": "<serial type='unix'><source mode='bind' path='/evil'/></serial>",
    "console tcp": "<console type='tcp'><source host='evil' mode='connect'/></console>",
    "parallel": f"<parallel type='dev'>{SOURCE}</parallel>",
    "udp": "<serial type='udp'><source mode='connect' host='evil' service='1'/></serial>",
    "guestfwd": "<channel type='unix'><source path='/evil'/><target type='guestfwd'/></channel>",
    "log": "<serial type='pty'><log file='/evil/../evil/log'/></serial>",
    "label": "<serial type='file'><source path='/x'><seclabel model='evil'/></source></serial>",
    "filesystem": "<filesystem><source dir='/evil'/><target dir='t'/></filesystem>",
    "hostdev": "<hostdev mode='subsystem' type='usb'><source name='evil'/></hostdev>",
    "tpm": "<tpm><backend type='passthrough'><device path='/evil'/></backend></tpm>",
    "tpm external": "<tpm><backend type='external'><source path='/evil'/></backend></tpm>",
    "tpm state": "<tpm><backend type='emulator'><source path='/evil'/></backend></tpm>",
    "input": "<input type='evdev'><source dev='/evil'/></input>",
    "passthrough": "<input type='passthrough'><source evdev='/evil'/></input>",
    "rng": "<rng model='virtio'><backend model='random'>/evil</backend></rng>",
    "egd": "<rng><backend model='egd' type='unix'><source path='/evil'/></backend></rng>",
    "nvdimm": "<memory model='nvdimm'><source><path>/evil</path></source></memory>",
    "dimm": "<memory model='dimm'><source><path>/evil</path></source></memory>",
    "shmem": "<shmem name='x'><server path='/evil'/></shmem>",
    "pstore": "<pstore backend='acpi-erst'><path>/evil</path></pstore>",
    "smartcard": "<smartcard mode='host-certificates'><database>/evil</database></smartcard>",
    "redirdev": "<redirdev bus='usb' type='tcp'><source host='evil'/></redirdev>",
    "audio": "<audio id='1' type='file' path='/evil'/>",
    "gl": "<graphics type='spice'><gl rendernode='/evil'/></graphics>",
    "sdl": "<graphics type='sdl' xauth='/evil'/>",
    "video": "<video><driver name='vhostuser'/><model><acceleration rendernode='/evil'/></model>"
    "</video>",
    "lease": "<lease><target path='/evil'/></lease>",
    "vhost disk": "<disk type='vhostuser' rawio='evil'><source path='/evil'/>"
    "<target dev='vda'/></disk>",
    "unknown": "<thing path='/evil'/>",
}


@pytest.mark.parametrize("device", FORBIDDEN_DEVICES.values(), ids=FORBIDDEN_DEVICES.keys())
def test_no_device_gets_at_the_host(device: str) -> None:
    _, text, _ = new(device)
    assert "evil" not in text


FORBIDDEN_PARTS = {
    "dac": "<seclabel type='static' model='dac' relabel='yes'><label>evil</label></seclabel>",
    "none": "<seclabel type='none' model='evil'/>",
    "arguments": "<qemu:commandline><qemu:arg value='evil'/></qemu:commandline>",
    "override": "<qemu:override><qemu:device alias='evil'/></qemu:override>",
    "fwcfg": "<sysinfo type='fwcfg'><entry name='opt/x' file='/evil'/></sysinfo>",
    "unknown": "<bootloader>/evil</bootloader>",
}


@pytest.mark.parametrize("part", FORBIDDEN_PARTS.values(), ids=FORBIDDEN_PARTS.keys())
def test_no_other_part_does_either_and_it_is_said(part: str) -> None:
    _, text, notes = new(rest=part)
    assert "evil" not in text
    assert "left out" in notes


def test_firmware_and_kernels_stay_where_everybody_may_read_them(tmp_path: Path) -> None:
    # Below a directory that nobody else may enter, as pytest's are.
    hidden = tmp_path / "secret"
    hidden.write_text("x")
    hidden.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(hidden)
    everybodys = "/etc/passwd"
    for path in (hidden, link, "/dev/null"):
        root, text, notes = new(os=f"<kernel>{path}</kernel><initrd>{path}</initrd>")
        assert str(path) not in text and f"its kernel {path}" in notes
        _, text, _ = new(os=f"<loader type='pflash'>{path}</loader><nvram>/n</nvram>")
        assert str(path) not in text and "nvram" not in text
        _, text, _ = new(os=f"<loader>{everybodys}</loader><nvram template='{path}'>/n</nvram>")
        assert str(path) not in text and "new_VARS" in text
    root, _, notes = new(
        os=f"<loader readonly='no' type='pflash'>{everybodys}</loader><kernel>{everybodys}</kernel>"
        "<acpi><table type='slic'>/etc/passwd</table></acpi>"
    )
    assert root.findtext("os/kernel") == root.findtext("os/loader") == everybodys
    loader = root.find("os/loader")
    # Never to be written to: libvirt would give it to QEMU's user.
    assert loader is not None and loader.get("readonly") == "yes"
    assert root.find("os/acpi") is None and "<acpi>" in notes


def test_a_machine_of_the_usual_kind_stays_as_it_was() -> None:
    kept = (
        "<controller type='usb' model='qemu-xhci'/><input type='tablet' bus='usb'/>"
        "<interface type='network'><source network='default'/><model type='virtio'/></interface>"
        "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
        "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>"
        "<serial type='pty'><target port='0'/></serial><audio id='1' type='spice'/>"
        "<graphics type='spice' autoport='yes'/><video><model type='virtio'/></video>"
        "<redirdev bus='usb' type='spicevmc'/><watchdog model='itco'/><memballoon model='virtio'/>"
        "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"
        "<panic model='isa'/><sound model='ich9'/><memory model='dimm'/>"
    )
    machine = "<memory>1</memory><vcpu>2</vcpu><cpu mode='host-model'/><clock offset='utc'/><pm/>"
    emulator = "<emulator>/usr/bin/qemu-system-x86_64</emulator>"
    root, _, notes = new(emulator + kept, machine)
    devices = root.find("devices")
    assert devices is not None
    expected = ElementTree.fromstring(f"<devices>{kept}</devices>")
    assert [d.attrib | {"": d.tag} for d in devices] == [d.attrib | {"": d.tag} for d in expected]
    for tag in ("memory", "vcpu", "cpu", "clock", "pm"):
        assert root.find(tag) is not None
    assert notes == ""
