"""A new domain's XML: what must not exist twice is new, what the guest sees of its bus stays."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from workers.domain_xml import (
    NewDisk,
    image_indexes,
    nvram_of,
    policies_of,
    qemu_user,
    redefine,
    settled,
)

OLD = """<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name><uuid>11111111-1111-1111-1111-111111111111</uuid>
  <genid>22222222-2222-2222-2222-222222222222</genid>
  <sysinfo type='smbios'><system>
    <entry name='uuid'>11111111-1111-1111-1111-111111111111</entry>
  </system></sysinfo>
  <os><type arch='x86_64'>hvm</type><loader type='pflash'>/usr/share/OVMF/CODE.fd</loader>
    <nvram template='/usr/share/OVMF/VARS.fd'>/var/lib/libvirt/qemu/nvram/web_VARS.fd</nvram></os>
  <devices>
    <disk type='file' device='disk' snapshot='external'>
      <driver name='qemu' type='raw' cache='none' io='native' error_policy='report'/>
      <source file='/images/web.raw' index='1'><encryption format='luks'/></source>
      <backingStore type='file'><source file='/images/secret'/></backingStore>
      <mirror type='file'/>
      <target dev='vda' bus='virtio'/><serial>S1</serial><alias name='virtio-disk0'/>
      <address type='pci' slot='0x04'/>
    </disk>
    <disk type='network' device='disk'>
      <auth username='u'/><source protocol='rbd' name='pool/image'/>
      <target dev='vdb' bus='virtio'/><shareable/>
    </disk>
    <disk type='file' device='disk'>
      <source file='/images/other'/><target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <source file='/iso/a.iso'/><target dev='sda' bus='sata'/><readonly/>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:01'/><source bridge='br0' portid='p'/><target dev='vnet3'/>
      <virtualport type='openvswitch'><parameters interfaceid='i' profileid='keep'/></virtualport>
      <alias name='ua-lan'/><address type='pci' slot='0x03'/>
    </interface>
    <interface type='hostdev'><mac address='52:54:00:00:00:02'/></interface>
    <hostdev mode='subsystem' type='pci'/>
    <serial type='file'><source path='/var/log/web.log'/></serial>
    <console type='pty' tty='/dev/pts/1'><source path='/dev/pts/1'/></console>
    <channel type='unix'><source mode='bind' path='/var/lib/libvirt/x/domain-7-web/a'/></channel>
    <graphics type='vnc' port='5907' autoport='no'/>
    <tpm model='tpm-crb'><backend type='emulator'/></tpm>
    <vsock><cid auto='no' address='4'/></vsock>
  </devices>
  <seclabel type='dynamic' model='dac'><label>+64055:+64055</label></seclabel>
  <qemu:commandline><qemu:arg value='-foo'/></qemu:commandline>
</domain>"""
UUID = "33333333-3333-3333-3333-333333333333"
NVRAM = "/restores/new/new_VARS.fd"


def new(**disks: NewDisk) -> tuple[ElementTree.Element, list[str]]:
    given = disks or {
        "vda": NewDisk("/restores/new/vda.qcow2", "qcow2"),
        "vdb": NewDisk("/dev/vg0/new", "raw", device=True),
    }
    text, notes = redefine(
        OLD, name="new", uuid=UUID, disks=given, directory="/restores/new", nvram=NVRAM
    )
    return ElementTree.fromstring(text), notes


def test_what_must_not_exist_twice_is_new() -> None:
    root, _ = new()
    text = ElementTree.tostring(root, encoding="unicode")
    olds = ("web_VARS", "52:54", "1111", "2222", "vnet3", "5907", "domain-7", "pts", "64055")
    for old in (*olds, "/var/log/web.log", "interfaceid", "portid"):
        assert old not in text
    assert root.get("id") is None
    assert (root.findtext("name"), root.findtext("uuid")) == ("new", UUID)
    assert root.findtext("sysinfo/system/entry") == UUID
    assert nvram_of(text) == NVRAM
    assert root.find("devices/serial/source").get("path") == "/restores/new/new-web.log"  # type: ignore[union-attr]


def test_disks_point_at_what_was_restored_and_keep_their_place() -> None:
    root, notes = new()
    vda, vdb, cdrom = root.findall("devices/disk")
    assert vda.find("source").attrib == {"file": "/restores/new/vda.qcow2"}  # type: ignore[union-attr]
    assert vda.find("driver").attrib == {  # type: ignore[union-attr]
        "name": "qemu",
        "type": "qcow2",
        "cache": "none",
        "io": "native",
        "error_policy": "report",
    }
    assert [child.tag for child in vda] == ["driver", "source", "target", "serial", "address"]
    assert (vdb.get("type"), vdb.find("source").attrib) == ("block", {"dev": "/dev/vg0/new"})  # type: ignore[union-attr]
    assert [child.tag for child in vdb] == ["driver", "source", "target"]
    assert (cdrom.find("source"), cdrom.get("device")) == (None, "cdrom")
    assert root.find("devices/interface/alias").get("name") == "ua-lan"  # type: ignore[union-attr]
    assert root.find("devices/interface/address") is not None
    said = " | ".join(notes)
    for expected in (
        "vda: was encrypted",
        "vdb: was shared",
        "vdc: not restored",
        "drive is empty",
    ):
        assert expected in said


def test_what_is_left_out_or_lost_is_said() -> None:
    root, notes = new()
    assert root.find("devices/hostdev") is None
    assert len(root.findall("devices/interface")) == 1
    said = " | ".join(notes)
    for expected in ("host device (pci)", "network interface", "TPM begins empty", "for QEMU"):
        assert expected in said
    for chosen_anew in ("vnc port 5907", "vsock address 4"):
        assert f"its {chosen_anew} is chosen anew" in said


def test_a_served_disk_stops_its_guest_at_a_fault_until_it_stands_alone() -> None:
    root, _ = new(vda=NewDisk("/r/vda.qcow2", "qcow2", served="/run/nbd.sock"))
    (vda,) = (d for d in root.findall("devices/disk") if d.find("target").get("dev") == "vda")  # type: ignore[union-attr]
    driver, host = vda.find("driver"), vda.find("backingStore/source/host")
    assert driver is not None and host is not None
    assert (driver.get("error_policy"), driver.get("rerror_policy")) == ("stop", "stop")
    assert host.get("socket") == "/run/nbd.sock"
    text = ElementTree.tostring(root, encoding="unicode")
    alone = ElementTree.fromstring(settled(text, policies_of(OLD, {"vda": None})))
    assert alone.find("devices/disk/backingStore") is None
    driver = alone.find("devices/disk/driver")
    assert driver is not None
    assert (driver.get("error_policy"), driver.get("rerror_policy")) == ("report", None)


def test_an_image_is_found_under_a_snapshot_with_what_is_below_it() -> None:
    disk = "<disk type='file'>{}<target dev='vda'/></disk>"
    point = (
        "<backingStore type='network' index='2'><source protocol='nbd' name='vda'/></backingStore>"
    )
    plain = f"<source file='/r/vda.qcow2' index='1'/>{point}"
    under = (
        "<source file='/r/top' index='3'/><backingStore type='file' index='1'>"
        f"<source file='/r/vda.qcow2'/>{point}</backingStore>"
    )
    for inside, expected in (
        (plain, ("1", "2")),
        (under, ("1", "2")),
        ("<source file='/r/vda.qcow2' index='1'/><backingStore/>", ("1", "")),
        ("<source file='/r/other' index='1'/>", ("", "")),
    ):
        xml = f"<domain><devices>{disk.format(inside)}</devices></domain>"
        assert image_indexes(xml, "/r/vda.qcow2") == expected


def test_the_user_of_qemu_is_the_one_of_that_kind_of_domain() -> None:
    capabilities = """<capabilities><host>
      <secmodel><model>apparmor</model><baselabel type='kvm'>x</baselabel></secmodel>
      <secmodel><model>dac</model><baselabel type='kvm'>+107:+36</baselabel>
        <baselabel type='qemu'>+64055:+64055</baselabel></secmodel></host></capabilities>"""
    assert qemu_user(capabilities, "kvm") == 107
    assert qemu_user(capabilities, "qemu") == 64055
    assert qemu_user("<capabilities><host/></capabilities>", "kvm") == 0
