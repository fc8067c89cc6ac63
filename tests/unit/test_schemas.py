"""What crosses a process border is checked field by field, and the answer names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from virtvault import Client
from virtvault.errors import InvalidRequest
from virtvault.models import (
    BackupRequest,
    BackupResult,
    CheckLine,
    DiskInfo,
    DiskProgress,
    DomainInfo,
    DomainStatus,
    FleetStatus,
    FleetTotals,
    HostInfo,
    JobInfo,
    Point,
    PointDisk,
    Progress,
    RestoredDisk,
    RestoreRequest,
    RestoreResult,
)
from virtvault.schemas import dump, load

POINT = "20260101T000000Z-11111111"
UUID = "12345678-1234-1234-1234-123456789abc"
DISK = PointDisk(
    target="vda",
    file="vda.qcow2",
    sync="incremental",
    parent="20251231T000000Z-00000000",
    reason="",
    virtual_size=2**30,
    transferred=2**20,
    stored=2**20,
    length=2**21,
    source="/images/a.qcow2",
    source_format="qcow2",
    bitmap=f"virtvault.01234567.{POINT}",
    persistent=True,
)
WHEN = "2026-01-01T00:00:00.000Z"
MANIFEST = Point(
    id=POINT,
    repository="main",
    repository_id="01234567",
    task_id="t",
    domain="web",
    uuid=UUID,
    host="hv1",
    instant=WHEN,
    started=WHEN,
    finished=WHEN,
    consistency="agent-frozen",
    paused_ms=1.5,
    frozen_ms=2.5,
    isolated=True,
    disks=(DISK,),
    skipped={"sda": "cdrom drive"},
    notes=("a note",),
    versions={"qemu": "7.2.0"},
)
MODELS: list[Any] = [
    BackupRequest("web", "main", "full", ("vda", "sdb"), 10, "never"),
    RestoreRequest(POINT, "there", "main", "flatten", "raw", ("vda",), 10),
    MANIFEST,
    BackupResult(
        "t", POINT, "web", UUID, "hv1", "main", "complete", "crash-consistent", WHEN,
        0.0, 0.0, True, WHEN, WHEN, 1.5, (DISK,), {"sda": "cdrom drive"}, ("a note",),
    ),
    RestoreResult(
        "t", POINT, "web", "hv1", "main", "flatten", "/there", "complete", WHEN, WHEN,
        (RestoredDisk("vda", "/there/vda.raw", "raw", 2**30, 2**20),),
    ),
    Progress("t", "copying", 1, 2, 3.5, 4.5, (DiskProgress("vda", 1, 2, "running"),), WHEN, WHEN),
    HostInfo("hv1", True, WHEN, "9.0.0", "7.2.0", 3, ("main",)),
    DomainInfo("web", UUID, "hv1", "running", 2),
    DiskInfo("vda", "virtio", "qcow2", "/images/a.qcow2", 2**30, True, "", ("virtvault.x",)),
    JobInfo("hv1", "web", "virtvault-1-vda", "backup", "running", 1, 2, 0, "t"),
    CheckLine("tools", "failed", "missing", "install them"),
]  # fmt: skip


@pytest.mark.parametrize("value", MODELS, ids=lambda value: type(value).__name__)
def test_every_model_is_the_same_after_a_way_over_json(value: Any) -> None:
    assert load(type(value), json.loads(json.dumps(dump(value)))) == value


@pytest.mark.parametrize("value", MODELS, ids=lambda value: type(value).__name__)
def test_an_unknown_field_is_refused_and_named_with_the_known_ones(value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load(type(value), {**dump(value), "surprise": 1})
    assert "surprise: unknown field (known: " in caught.value.message
    assert caught.value.mend


@pytest.mark.parametrize("value", MODELS, ids=lambda value: type(value).__name__)
def test_a_missing_field_is_refused_and_named(value: Any) -> None:
    first = next(iter(dump(value)))
    data = {name: given for name, given in dump(value).items() if name != first}
    with pytest.raises(InvalidRequest, match=rf"{first}: "):
        load(type(value), data)


@pytest.mark.parametrize("data", [None, [], "web", 1, {}], ids=repr)
def test_what_is_no_request_at_all_is_refused(data: Any) -> None:
    with pytest.raises(InvalidRequest, match="backup request"):
        load(BackupRequest, data)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("domain", ""),
        ("domain", "a\nb"),
        ("domain", "web\n"),
        ("domain", None),
        ("sync", "bitmap"),
        ("sync", ""),
        ("disks", ["../vda"]),
        ("disks", ["vda", ""]),
        ("disks", ["vda\n"]),
        ("disks", "vda"),
        ("speed", -1),
        ("speed", "10"),
        ("speed", 1.5),
        ("freeze", "maybe"),
        ("repository", "x" * 101),
    ],
)
def test_a_wrong_field_of_a_backup_request_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"backup request: {field}"):
        load(BackupRequest, {"domain": "web", field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("point", "../../etc"),
        ("point", f"{POINT}.partial"),
        ("point", f"{POINT}\n"),
        ("point", "*"),
        ("to", ""),
        ("mode", "direct"),
        ("format", "vmdk"),
        ("disks", ["/etc/passwd"]),
        ("speed", -1),
    ],
)
def test_a_wrong_field_of_a_restore_request_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"restore request: {field}"):
        load(RestoreRequest, {"point": POINT, "to": "there", field: value})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema_version": 3}, "schema_version: written by another version; upgrade virtvault"),
        ({"disks": []}, "disks: "),
        ({"repository_id": "xyz"}, "repository_id: "),
        ({"uuid": "../x"}, "uuid: "),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load(Point, {**dump(MANIFEST), **change})
    assert named in caught.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("file", "../x.qcow2"),
        ("file", "/etc/passwd"),
        ("parent", "../.."),
        ("parent", f"{POINT}/.."),
        ("virtual_size", -1),
        ("length", "1"),
        ("sync", "none"),
    ],
)
def test_a_manifest_cannot_point_outside_the_repository(field: str, value: Any) -> None:
    data = dump(MANIFEST)
    data["disks"] = [{**data["disks"][0], field: value}]
    with pytest.raises(InvalidRequest, match=rf"disks\.0\.{field}: "):
        load(Point, data)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        load(BackupRequest, {"speed": -1, "freeze": "maybe"})
    for field in ("domain", "speed", "freeze"):
        assert f"{field}: " in caught.value.message


def test_a_fleet_from_central_is_what_the_schema_makes_of_it() -> None:
    domain = DomainStatus("db1", UUID, "hv1", "running", "late", {"tier": "prod"}, ("daily",))
    fleet = FleetStatus("2026-01-01T00:00:00.000Z", FleetTotals(domains=1), (domain,), ())
    plain = json.loads(json.dumps(dump(fleet)))
    client = Client.__new__(Client)
    client._question = lambda *_: plain  # type: ignore[method-assign]
    assert client.fleet() == fleet == load(FleetStatus, plain)
    plain["domains"][0]["mood"] = "good"
    with pytest.raises(InvalidRequest, match="mood: unknown field"):
        client.fleet()


def test_only_models_are_dumped() -> None:
    for value in ({"a": 1}, BackupRequest):
        with pytest.raises(TypeError, match="not a model"):
            dump(value)
