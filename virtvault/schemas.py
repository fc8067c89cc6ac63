"""marshmallow schemas of everything in :mod:`virtvault.models`, on the wire and on disk.

Unknown fields are refused, and every error names the field and the mend.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar

from marshmallow import RAISE, Schema, ValidationError, post_load, validate, validates_schema
from marshmallow import fields as f

from virtvault import models
from virtvault.errors import InvalidRequest, InvalidSettings
from virtvault.settings import RepositorySettings, Settings

__all__ = ["dump", "load", "load_settings"]

T = TypeVar("T")

# A name that becomes a queue or a directory name: no separator, no leading dot or dash.
NAME = validate.Regexp(
    r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z", error="use letters, digits, '_', '.', '-'"
)
TARGET = validate.Regexp(r"^[a-z]{2,4}[a-z0-9]{0,6}\Z", error="use a target name such as vda")
POINT = validate.Regexp(
    r"^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}\Z", error="use a point id as `virtvault points` shows it"
)
FILE = validate.Regexp(r"^[A-Za-z0-9_]+\.qcow2\Z", error="must be a plain file name")
# libvirt forbids '/' and newlines in names; an optional host/ before it is ours.
DOMAIN = validate.Regexp(r"^[^\n]{1,300}\Z", error="must be a domain name, uuid or host/name")
MOMENT = validate.Regexp(
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z\Z",
    error="must be UTC to the millisecond, such as 2026-01-31T04:05:06.123Z",
)
NOT_NEGATIVE = validate.Range(min=0, error="must not be negative")
PARENT = validate.Regexp(
    r"^([0-9]{8}T[0-9]{6}Z-[0-9a-f]{8})?\Z", error="must be a point id or empty"
)


class _Strict(Schema):
    """A schema that refuses unknown fields and makes its dataclass."""

    model: type[Any]

    class Meta:
        unknown = RAISE

    @post_load
    def _make(self, data: dict[str, Any], **_: Any) -> Any:
        return self.model(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def _text(**kwargs: Any) -> f.String:
    return f.String(required=True, **kwargs)


def _size() -> f.Integer:
    return f.Integer(required=True, strict=True, validate=NOT_NEGATIVE)


class BackupRequestSchema(_Strict):
    model = models.BackupRequest
    domain = _text(validate=DOMAIN)
    repository = f.String(validate=validate.And(validate.Length(max=100)))
    sync = f.String(validate=validate.OneOf(models.SYNC_MODES))
    disks = f.List(f.String(validate=TARGET))
    speed = f.Integer(strict=True, validate=NOT_NEGATIVE)
    freeze = f.String(validate=validate.OneOf(models.FREEZE_MODES))
    bitmap = f.String(validate=validate.Length(max=1023))
    start_paused = f.Boolean(truthy={True}, falsy={False})

    @validates_schema
    def _fits(self, data: dict[str, Any], **_: Any) -> None:
        sync = data.get("sync", "auto")
        if data.get("bitmap") and sync in ("top", "none"):
            raise ValidationError(f"goes with auto, full or incremental, not with {sync}", "bitmap")


class RestoreRequestSchema(_Strict):
    model = models.RestoreRequest
    point = _text(validate=POINT)
    to = _text(validate=validate.Length(min=1, max=1000))
    repository = f.String(validate=validate.Length(max=100))
    mode = f.String(validate=validate.OneOf(("flatten",)))
    format = f.String(validate=validate.OneOf(models.RESTORE_FORMATS))
    disks = f.List(f.String(validate=TARGET))
    speed = f.Integer(strict=True, validate=NOT_NEGATIVE)


class BackingImageSchema(_Strict):
    model = models.BackingImage
    path = _text(validate=validate.Regexp(r"^/", error="must be an absolute path"))
    format = _text(validate=validate.OneOf(("qcow2", "raw")))
    length = _size()
    modified = _size()


def _bitmap_name(name: str) -> None:
    # QEMU's limit, in bytes. A leading dash would be an option of qemu-img's.
    if not name or not name.isprintable() or len(name.encode()) > 1023 or name.startswith("-"):
        raise ValidationError("must be 1 to 1023 bytes of printable text, not beginning with '-'")


def _granularity(count: int) -> None:
    if count and (count & (count - 1) or not 512 <= count <= 2**31):
        raise ValidationError("must be a power of two from 512 bytes to 2 GiB, such as 64K")


class BitmapRequestSchema(_Strict):
    model = models.BitmapRequest
    domain = _text(validate=DOMAIN)
    name = f.String(validate=_bitmap_name)
    disks = f.List(f.String(validate=TARGET))
    granularity = f.Integer(strict=True, validate=[NOT_NEGATIVE, _granularity])
    persistent = f.Boolean(allow_none=True, truthy={True}, falsy={False})
    include_ours = f.Boolean(truthy={True}, falsy={False})


class PointDiskSchema(_Strict):
    model = models.PointDisk
    target = _text(validate=TARGET)
    file = _text(validate=FILE)
    sync = _text(validate=validate.OneOf(("full", "incremental", "top")))
    parent = _text(validate=PARENT)
    reason = _text()
    virtual_size = _size()
    transferred = _size()
    stored = _size()
    length = _size()
    source = _text()
    source_format = _text()
    bitmap = _text()
    persistent = f.Boolean(required=True)
    backing = f.List(f.Nested(BackingImageSchema))
    witness = f.Integer(strict=True, validate=NOT_NEGATIVE)


class _DisksMixin(_Strict):
    skipped = f.Dict(keys=f.String(), values=f.String(), required=True)
    notes = f.List(f.String(), required=True)
    disks = f.List(f.Nested(PointDiskSchema), required=True, validate=validate.Length(min=1))
    domain = _text()
    uuid = f.String(required=True, validate=validate.Regexp(r"^[0-9a-f-]{36}\Z"))
    host = _text()
    repository = _text()
    task_id = _text()
    instant = _text()
    started = _text()
    finished = _text()
    consistency = _text(validate=validate.OneOf(("agent-frozen", "crash-consistent")))
    paused_ms = f.Float(required=True)
    frozen_ms = f.Float(required=True)
    isolated = f.Boolean(required=True)


class PointSchema(_DisksMixin):
    model = models.Point
    id = _text(validate=POINT)
    repository_id = _text(validate=validate.Regexp(r"^[0-9a-f]{8}\Z"))
    versions = f.Dict(keys=f.String(), values=f.String(), required=True)
    state = f.String()
    schema_version = f.Integer(
        required=True,
        strict=True,
        validate=validate.Equal(
            models.MANIFEST_VERSION, error="written by another version; upgrade virtvault"
        ),
    )


class BackupResultSchema(_DisksMixin):
    model = models.BackupResult
    point = _text(validate=POINT)
    state = _text(validate=validate.OneOf(("complete",)))
    job_seconds = f.Float(required=True)


class ExportedDiskSchema(_Strict):
    model = models.ExportedDisk
    target = _text(validate=TARGET)
    url = _text()
    virtual_size = _size()
    scratch = _size()


class ExportResultSchema(_Strict):
    model = models.ExportResult
    task_id = _text()
    domain = _text()
    uuid = _text()
    host = _text()
    state = _text()
    consistency = _text()
    instant = _text()
    paused_ms = f.Float(required=True)
    frozen_ms = f.Float(required=True)
    started = _text()
    finished = _text()
    exports = f.List(f.Nested(ExportedDiskSchema), required=True)
    skipped = f.Dict(keys=f.String(), values=f.String(), required=True)
    notes = f.List(f.String(), required=True)


class RestoredDiskSchema(_Strict):
    model = models.RestoredDisk
    target = _text(validate=TARGET)
    path = _text()
    format = _text()
    virtual_size = _size()
    stored = _size()


class RestoreResultSchema(_Strict):
    model = models.RestoreResult
    task_id = _text()
    point = _text(validate=POINT)
    domain = _text()
    host = _text()
    repository = _text()
    mode = _text()
    to = _text()
    state = _text()
    started = _text()
    finished = _text()
    disks = f.List(f.Nested(RestoredDiskSchema), required=True)


class DiskProgressSchema(_Strict):
    model = models.DiskProgress
    target = _text()
    done = f.Integer(required=True)
    total = f.Integer(required=True)
    status = _text()


class ProgressSchema(_Strict):
    model = models.Progress
    task_id = _text()
    phase = _text()
    done = f.Integer()
    total = f.Integer()
    rate = f.Float()
    eta = f.Float()
    updated = f.String()
    instant = f.String()
    domain = f.String()
    disks = f.List(f.Nested(DiskProgressSchema))
    exports = f.Dict(keys=f.String(), values=f.String())


class HostInfoSchema(_Strict):
    model = models.HostInfo
    host = _text()
    alive = f.Boolean(required=True)
    seen = _text()
    libvirt = f.String()
    qemu = f.String()
    domains = f.Integer()
    repositories = f.List(f.String())


class DomainInfoSchema(_Strict):
    model = models.DomainInfo
    name = _text()
    uuid = _text()
    host = _text()
    state = _text()
    disks = f.Integer()


class DiskInfoSchema(_Strict):
    model = models.DiskInfo
    target = _text()
    bus = _text()
    format = _text()
    source = _text()
    virtual_size = _size()
    persistent_bitmaps = f.Boolean(required=True)
    skip = f.String()
    bitmaps = f.List(f.String())


class BitmapInfoSchema(_Strict):
    model = models.BitmapInfo
    target = _text()
    name = _text()
    owner = _text(validate=validate.OneOf(("virtvault", "libvirt", "user")))
    purpose = _text()
    granularity = _size()
    dirty = f.Integer(required=True, strict=True, allow_none=True, validate=NOT_NEGATIVE)
    persistent = f.Boolean(required=True)
    state = _text(validate=validate.OneOf(("recording", "disabled", "busy", "inconsistent")))
    image = _text()
    active = f.Boolean(required=True)


class BitmapChangesSchema(_Strict):
    model = models.BitmapChanges
    domain = _text()
    action = _text(validate=validate.OneOf(("added", "cleared", "removed")))
    bitmaps = f.List(f.Nested(BitmapInfoSchema), required=True)
    skipped = f.Dict(keys=f.String(), values=f.String(), required=True)


class JobInfoSchema(_Strict):
    model = models.JobInfo
    host = _text()
    domain = _text()
    job = _text()
    type = _text()
    status = _text()
    done = f.Integer(required=True)
    total = f.Integer(required=True)
    speed = f.Integer(required=True)
    task_id = f.String()
    uuid = f.String()
    error = f.String()


class CheckLineSchema(_Strict):
    model = models.CheckLine
    subject = _text()
    verdict = _text(validate=validate.OneOf(("ok", "warning", "failed")))
    detail = _text()
    mend = f.String()


class EventSchema(_Strict):
    model = models.Event
    at = _text(validate=MOMENT)
    host = _text()
    event = _text()
    domain = _text()
    uuid = _text()
    data = f.Dict(keys=f.String(), required=True)


class RepositorySettingsSchema(_Strict):
    model = RepositorySettings
    name = _text(validate=NAME)
    path = _text(validate=validate.Regexp(r"^/", error="must be an absolute path"))
    type = f.String(validate=validate.OneOf(("directory",)))


def _at_least(low: float) -> validate.Range:
    return validate.Range(min=low, error=f"must be at least {low:g}")


def _qemu_version(text: str) -> None:
    if not text:
        return
    if re.fullmatch(r"\d+\.\d+", text) is None:
        raise ValidationError("must be MAJOR.MINOR, as in 4.2, or empty")
    # The oldest that the engine works with.
    if tuple(map(int, text.split("."))) < (2, 12):
        raise ValidationError("must be 2.12 or later, or empty")


class SettingsSchema(_Strict):
    model = Settings
    host = f.String(validate=NAME)
    libvirt_uri = f.String()
    state_dir = f.String(validate=validate.Regexp(r"^/", error="must be an absolute path"))
    runtime_dir = f.String(
        validate=[
            validate.Regexp(r"^/", error="must be an absolute path"),
            validate.Length(max=60, error="at most 60 characters: unix sockets lie below it"),
        ]
    )
    broker_url = f.String(
        validate=validate.Regexp(r"^(redis|rediss|redis\+socket)://", error="must be a Redis URL")
    )
    result_backend = f.String()
    catalog_url = f.String()
    slots = f.Integer(validate=_at_least(1))
    lease_seconds = f.Integer(validate=_at_least(3))
    sweep_seconds = f.Integer(validate=_at_least(1))
    control_timeout = f.Integer(validate=_at_least(1))
    qmp_timeout = f.Float(validate=_at_least(1))
    poll_min = f.Float(validate=_at_least(0.05))
    poll_max = f.Float(validate=_at_least(0.05))
    stall_seconds = f.Integer(validate=_at_least(5))
    cbw_timeout = f.Integer(validate=_at_least(1))
    scratch_dir = f.String()
    scratch_limit = f.Integer(validate=_at_least(2**20))
    freeze_timeout = f.Integer(validate=_at_least(1))
    guard_seconds = f.Float(validate=validate.Range(min=0.2, max=60))
    qemu_as_of = f.String(validate=_qemu_version)
    nbd_clients = f.Integer(validate=_at_least(2))
    compression = f.String(validate=validate.OneOf(("none", "zstd")))
    repositories = f.Dict(keys=f.String(validate=NAME), values=f.Dict())
    default_repository = f.String()
    backing_roots = f.List(f.String(validate=validate.Regexp(r"^/", error="must be absolute")))
    restore_roots = f.List(f.String(validate=validate.Regexp(r"^/", error="must be absolute")))
    flower_address = f.String()
    flower_port = f.Integer(validate=validate.Range(min=1, max=65535))


_SCHEMAS: dict[type[Any], _Strict] = {
    schema.model: schema()
    for schema in (
        BackupRequestSchema,
        RestoreRequestSchema,
        BitmapRequestSchema,
        PointSchema,
        BackupResultSchema,
        ExportResultSchema,
        RestoreResultSchema,
        ProgressSchema,
        HostInfoSchema,
        DomainInfoSchema,
        DiskInfoSchema,
        BitmapInfoSchema,
        BitmapChangesSchema,
        JobInfoSchema,
        CheckLineSchema,
        EventSchema,
    )
}


def dump(value: Any) -> dict[str, Any]:
    """A dataclass of :mod:`virtvault.models` as JSON-able data."""
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"not a model: {value!r}")
    return {k: _plain(v) for k, v in asdict(value).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def load(model: type[T], data: Any) -> T:
    """Make a ``model`` from untrusted data.

    :raises InvalidRequest: naming each wrong field and what it takes.
    """
    try:
        made: T = _SCHEMAS[model].load(data)
    except ValidationError as error:
        raise InvalidRequest(
            f"{_words(model.__name__)}: {_problems(error, model)}.", "Mend that and send it again."
        ) from error
    return made


def load_settings(data: Mapping[str, Any], where: str) -> Settings:
    """Settings from a parsed file and variables; ``where`` names their origin in errors.

    :raises InvalidSettings: naming each wrong key.
    """
    try:
        raw = SettingsSchema().load(dict(data), unknown=RAISE)
        repositories = {
            name: RepositorySettingsSchema().load({"name": name, **table})
            for name, table in raw.repositories.items()
        }
    except ValidationError as error:
        raise InvalidSettings(f"{where}: {_problems(error, Settings)}.", "Mend that.") from error
    values = {field.name: getattr(raw, field.name) for field in fields(raw)}
    return Settings(**{**values, "repositories": repositories})


def _problems(error: ValidationError, model: type[Any]) -> str:
    """``field: what is wrong`` for each problem; an unknown field is told the known ones."""
    found = []
    for name, messages in _flat(error.messages):
        text = " ".join(str(m).rstrip(".") for m in messages)
        if text == "Unknown field":
            known = ", ".join(sorted(field.name for field in fields(model)))
            text = f"unknown field (known: {known})"
        found.append(f"{name}: {text}")
    return "; ".join(found)


def _flat(messages: Any, prefix: str = "") -> list[tuple[str, list[str]]]:
    if isinstance(messages, dict):
        return [
            pair
            for key, value in messages.items()
            for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix.removeprefix("_schema.") or "request", list(messages))]


def _words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
