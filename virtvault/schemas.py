"""marshmallow schemas of everything in :mod:`virtvault.models`, on the wire and on disk.

Unknown fields are refused, and every error names the field and the mend.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar

from marshmallow import RAISE, Schema, ValidationError, post_load, validate
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


class RestoreRequestSchema(_Strict):
    model = models.RestoreRequest
    point = _text(validate=POINT)
    to = _text(validate=validate.Length(min=1, max=1000))
    repository = f.String(validate=validate.Length(max=100))
    mode = f.String(validate=validate.OneOf(("flatten",)))
    format = f.String(validate=validate.OneOf(models.RESTORE_FORMATS))
    disks = f.List(f.String(validate=TARGET))
    speed = f.Integer(strict=True, validate=NOT_NEGATIVE)


class PointDiskSchema(_Strict):
    model = models.PointDisk
    target = _text(validate=TARGET)
    file = _text(validate=FILE)
    sync = _text(validate=validate.OneOf(("full", "incremental")))
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


class CheckLineSchema(_Strict):
    model = models.CheckLine
    subject = _text()
    verdict = _text(validate=validate.OneOf(("ok", "warning", "failed")))
    detail = _text()
    mend = f.String()


class RepositorySettingsSchema(_Strict):
    model = RepositorySettings
    name = _text(validate=NAME)
    path = _text(validate=validate.Regexp(r"^/", error="must be an absolute path"))
    type = f.String(validate=validate.OneOf(("directory",)))


def _at_least(low: float) -> validate.Range:
    return validate.Range(min=low, error=f"must be at least {low:g}")


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
    nbd_clients = f.Integer(validate=_at_least(2))
    compression = f.String(validate=validate.OneOf(("none", "zstd")))
    repositories = f.Dict(keys=f.String(validate=NAME), values=f.Dict())
    default_repository = f.String()
    restore_roots = f.List(f.String(validate=validate.Regexp(r"^/", error="must be absolute")))
    flower_address = f.String()
    flower_port = f.Integer(validate=validate.Range(min=1, max=65535))


_SCHEMAS: dict[type[Any], _Strict] = {
    schema.model: schema()
    for schema in (
        BackupRequestSchema,
        RestoreRequestSchema,
        PointSchema,
        BackupResultSchema,
        RestoreResultSchema,
        ProgressSchema,
        HostInfoSchema,
        DomainInfoSchema,
        DiskInfoSchema,
        JobInfoSchema,
        CheckLineSchema,
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
