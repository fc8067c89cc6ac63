"""Whose a bitmap is, and which requests about bitmaps are taken from the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest

from virtvault.errors import InvalidRequest
from virtvault.models import BitmapChanges, BitmapInfo, BitmapRequest
from virtvault.schemas import dump, load
from workers.bitmap_owners import Owners

POINT = "20260101T000000Z-11111111"
INFO = BitmapInfo("vda", "mine", "user", "", 65536, None, True, "recording", "/i/a.qcow2", True)


@pytest.mark.parametrize(
    ("name", "owner", "purpose"),
    [
        (f"virtvault.01234567.{POINT}", "virtvault", f"point {POINT}, repository main"),
        (f"virtvault.89abcdef.{POINT}", "virtvault", f"point {POINT}, repository 89abcdef"),
        ("virtvault.mine", "virtvault", "unknown point"),
        ("virtvault", "user", ""),
        ("monday", "libvirt", "checkpoint monday"),
        ("Monday", "user", ""),
        ("libvirt-tmp-activewrite", "libvirt", "temporary, of a job it runs"),
        ("libvirt-migration-vda", "libvirt", "temporary, of a job it runs"),
        ("libvirt", "user", ""),
        ("backup-vdb", "user", ""),
    ],
)
def test_the_owner_of_a_bitmap_is_told_from_its_name(name: str, owner: str, purpose: str) -> None:
    owners = Owners({"01234567": "main"}, frozenset({"monday"}), libvirt_backup=True)
    assert owners.of(name, "vda") == (owner, purpose)


def test_the_name_of_libvirts_backup_bitmap_is_libvirts_to_make_at_any_time() -> None:
    idle, at_work = Owners(), Owners(libvirt_backup=True)
    assert idle.of("backup-vda", "vda")[0] == "user"
    assert at_work.of("backup-vda", "vda")[0] == "libvirt"
    assert idle.reserved_for("backup-vda", "vda") == "libvirt"
    assert idle.reserved_for("backup-vda", "vdb") == ""


@pytest.mark.parametrize(
    "model",
    [
        BitmapRequest("web", "mine", ("vda",), 4096, False, True),
        BitmapRequest("web"),
        INFO,
        BitmapChanges("web", "added", (INFO,), {"vdb": "why"}),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_is_sent_is_what_arrives(model: Any) -> None:
    assert load(type(model), json.loads(json.dumps(dump(model)))) == model


@pytest.mark.parametrize("granularity", [0, 512, 65536, 2**31])
def test_granularities_that_qemu_takes(granularity: int) -> None:
    wire = {"domain": "web", "name": "x", "granularity": granularity}
    assert load(BitmapRequest, wire).granularity == granularity


@pytest.mark.parametrize("name", ["x" * 1023, "é" * 511, "with space", "*", "日"])
def test_names_that_qemu_takes(name: str) -> None:
    assert load(BitmapRequest, {"domain": "web", "name": name}).name == name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("granularity", value) for value in (-512, 1, 256, 513, 100000, 2**32, "64K", 65536.0)),
        *(("name", value) for value in ("", "x" * 1024, "é" * 512, "a\nb", "\udc80", "-x", None)),
        ("persistent", "yes"),
        ("include_ours", 2),
        ("disks", ["../vda"]),
        ("node", "libvirt-1-format"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"bitmap request: {field}[.0-9]*: ") as caught:
        load(BitmapRequest, {"domain": "web", "name": "x", field: value})
    assert caught.value.mend
