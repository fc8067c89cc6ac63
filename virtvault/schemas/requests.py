"""Schemas of :mod:`virtvault.models.requests`."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, validate, validates_schema
from marshmallow import fields as f

from virtvault import models, queues
from virtvault.schemas.base import (
    DOMAIN,
    NOT_NEGATIVE,
    POINT,
    TARGET,
    Strict,
    text,
)


class BackupRequestSchema(Strict):
    model = models.BackupRequest
    domain = text(validate=DOMAIN)
    repository = f.String(validate=validate.And(validate.Length(max=100)))
    sync = f.String(validate=validate.OneOf(models.SYNC_MODES))
    disks = f.List(f.String(validate=TARGET))
    speed = f.Integer(strict=True, validate=NOT_NEGATIVE)
    freeze = f.String(validate=validate.OneOf(models.FREEZE_MODES))
    bitmap = f.String(validate=validate.Length(max=1023))
    start_paused = f.Boolean(truthy={True}, falsy={False})
    full_points = f.Integer(strict=True, validate=NOT_NEGATIVE)
    full_days = f.Integer(strict=True, validate=NOT_NEGATIVE)

    @validates_schema
    def _fits(self, data: dict[str, Any], **_: Any) -> None:
        sync = data.get("sync", "auto")
        if data.get("bitmap") and sync in ("top", "none"):
            raise ValidationError(f"goes with auto, full or incremental, not with {sync}", "bitmap")


# What libvirt takes for a name, and we for a directory's.
NEW_NAME = validate.Regexp(
    r"^([A-Za-z0-9_][A-Za-z0-9_.+:@ -]{0,99})?\Z", error="use letters, digits, '_', '.', '-'"
)


class RestoreRequestSchema(Strict):
    model = models.RestoreRequest
    point = text(validate=POINT)
    to = f.String(validate=validate.Length(max=1000))
    repository = f.String(validate=validate.Length(max=100))
    mode = f.String(validate=validate.OneOf(models.RESTORE_MODES))
    format = f.String(validate=validate.OneOf(models.RESTORE_FORMATS))
    disks = f.List(f.String(validate=TARGET))
    speed = f.Integer(strict=True, validate=NOT_NEGATIVE)
    name = f.String(validate=NEW_NAME)
    start = f.Boolean(truthy={True}, falsy={False})
    in_place = f.Boolean(truthy={True}, falsy={False})
    devices = f.Dict(keys=f.String(validate=TARGET), values=f.String())
    force = f.Boolean(truthy={True}, falsy={False})

    @validates_schema
    def _fits(self, data: dict[str, Any], **_: Any) -> None:
        mode, name, in_place = (data.get(k) for k in ("mode", "name", "in_place"))
        if in_place and (name or data.get("to") or data.get("devices")):
            raise ValidationError(
                "replaces the domain's own images: goes with neither to, name nor devices",
                "in_place",
            )
        if not (in_place or name or data.get("to") or data.get("devices")):
            raise ValidationError("name a directory, or give name or in_place", "to")
        if mode == "instant" and not name:
            raise ValidationError("instant boots a domain: give it a name", "name")
        if data.get("start") and not name:
            raise ValidationError("starts the domain that name defines: give it a name", "start")
        if mode in ("chain", "instant") and data.get("format", "qcow2") != "qcow2":
            raise ValidationError(f"{mode} writes qcow2", "format")
        if mode in ("chain", "instant") and data.get("devices"):
            raise ValidationError(f"{mode} writes files; devices go with flatten", "devices")


def _bitmap_name(name: str) -> None:
    # QEMU's limit, in bytes. A leading dash would be an option of qemu-img's.
    if not name or not name.isprintable() or len(name.encode()) > 1023 or name.startswith("-"):
        raise ValidationError("must be 1 to 1023 bytes of printable text, not beginning with '-'")


def _granularity(count: int) -> None:
    if count and (count & (count - 1) or not 512 <= count <= 2**31):
        raise ValidationError("must be a power of two from 512 bytes to 2 GiB, such as 64K")


class BitmapRequestSchema(Strict):
    model = models.BitmapRequest
    domain = text(validate=DOMAIN)
    name = f.String(validate=_bitmap_name)
    disks = f.List(f.String(validate=TARGET))
    granularity = f.Integer(strict=True, validate=[NOT_NEGATIVE, _granularity])
    persistent = f.Boolean(allow_none=True, truthy={True}, falsy={False})
    include_ours = f.Boolean(truthy={True}, falsy={False})


def _flag() -> f.Boolean:
    return f.Boolean(truthy={True}, falsy={False})


def _count() -> f.Integer:
    return f.Integer(strict=True, validate=NOT_NEGATIVE)


class VerifyRequestSchema(Strict):
    model = models.VerifyRequest
    points = f.List(f.String(validate=POINT))
    repository = f.String(validate=validate.Length(max=100))
    domain = f.String(validate=validate.Regexp(r"^([0-9a-f-]{36})?\Z", error="must be a uuid"))
    boot = _flag()
    boot_seconds = f.Integer(strict=True, validate=validate.Range(min=1, max=3600))
    against_source = _flag()
    samples = f.Integer(strict=True, validate=validate.Range(min=1, max=1_000_000))
    speed = _count()

    @validates_schema
    def _says_which(self, data: dict[str, Any], **_: Any) -> None:
        if bool(data.get("points")) == bool(data.get("domain")):
            raise ValidationError("give points, or a domain whose newest is meant", "points")


class ServeRequestSchema(Strict):
    model = models.ServeRequest
    point = text(validate=POINT)
    repository = f.String(validate=validate.Length(max=100))
    disks = f.List(f.String(validate=TARGET))
    seconds = _count()
    force = _flag()


class RetentionRulesSchema(Strict):
    model = models.RetentionRules
    last = _count()
    hourly = _count()
    daily = _count()
    weekly = _count()
    monthly = _count()
    yearly = _count()
    within = _count()


class PruneRequestSchema(Strict):
    model = models.PruneRequest
    repository = f.String(validate=validate.Length(max=100))
    domain = f.String(validate=validate.Regexp(r"^([0-9a-f-]{36})?\Z", error="must be a uuid"))
    rules = f.Nested(RetentionRulesSchema)
    points = f.List(f.String(validate=POINT))
    dry_run = _flag()
    speed = _count()

    @validates_schema
    def _says_what(self, data: dict[str, Any], **_: Any) -> None:
        # No rule would keep nothing at all: never what was meant.
        if not data.get("points") and data.get("rules", models.RetentionRules()) == (
            models.RetentionRules()
        ):
            raise ValidationError("give at least one rule (such as last: 7), or points", "rules")


# A task id becomes part of Redis keys and file names.
TASK_ID = validate.Regexp(
    r"^([A-Za-z0-9][A-Za-z0-9._-]{7,99})?\Z",
    error="use 8 to 100 letters, digits, '.', '_', '-'",
)
CALLBACK = validate.Regexp(r"^(https?://[^\s]{1,1000})?\Z", error="must be an http(s) URL")


class SubmissionSchema(Strict):
    model = models.Submission
    task = text(validate=validate.OneOf(queues.LONG_TASKS))
    request = f.Dict(keys=f.String(), required=True)
    host = f.String(validate=validate.Length(max=100))
    callback = f.String(validate=CALLBACK)
    task_id = f.String(validate=TASK_ID)
