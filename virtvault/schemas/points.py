"""Schemas of :mod:`virtvault.models.points`."""

from __future__ import annotations

from datetime import datetime

from marshmallow import ValidationError, validate
from marshmallow import fields as f

from virtvault import models
from virtvault.schemas.base import (
    FILE,
    NOT_NEGATIVE,
    PARENT,
    POINT,
    TARGET,
    Strict,
    size,
    text,
)

VERDICTS = ("good", "bad", "unproven")


class BackingImageSchema(Strict):
    model = models.BackingImage
    path = text(validate=validate.Regexp(r"^/", error="must be an absolute path"))
    format = text(validate=validate.OneOf(("qcow2", "raw")))
    length = size()
    modified = size()


class PointDiskSchema(Strict):
    model = models.PointDisk
    target = text(validate=TARGET)
    file = text(validate=FILE)
    sync = text(validate=validate.OneOf(("full", "incremental", "top")))
    parent = text(validate=PARENT)
    reason = text()
    virtual_size = size()
    transferred = size()
    stored = size()
    length = size()
    source = text()
    source_format = text()
    bitmap = text()
    persistent = f.Boolean(required=True)
    backing = f.List(f.Nested(BackingImageSchema))
    witness = f.Integer(strict=True, validate=NOT_NEGATIVE)
    digests = f.String(validate=validate.Regexp(r"^([0-9a-f]{64})?\Z", error="must be a digest"))


def _is_time(text: str) -> None:
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise ValidationError("must be a time, such as 2026-01-31T04:05:06.123Z") from error


class DisksMixin(Strict):
    skipped = f.Dict(keys=f.String(), values=f.String(), required=True)
    notes = f.List(f.String(), required=True)
    disks = f.List(f.Nested(PointDiskSchema), required=True, validate=validate.Length(min=1))
    domain = text()
    uuid = f.String(required=True, validate=validate.Regexp(r"^[0-9a-f-]{36}\Z"))
    host = text()
    repository = text()
    task_id = text()
    instant = text(validate=_is_time)
    started = text()
    finished = text()
    consistency = text(validate=validate.OneOf(("agent-frozen", "crash-consistent")))
    paused_ms = f.Float(required=True)
    frozen_ms = f.Float(required=True)
    isolated = f.Boolean(required=True)


class PointSchema(DisksMixin):
    model = models.Point
    id = text(validate=POINT)
    repository_id = text(validate=validate.Regexp(r"^[0-9a-f]{8}\Z"))
    versions = f.Dict(keys=f.String(), values=f.String(), required=True)
    state = f.String()
    merged = f.List(f.String(validate=POINT))
    schema_version = f.Integer(
        required=True,
        strict=True,
        validate=validate.Range(
            min=models.MANIFEST_OLDEST,
            max=models.MANIFEST_VERSION,
            error="written by another version; upgrade virtvault",
        ),
    )


class PointStatusSchema(Strict):
    model = models.PointStatus
    point = text(validate=POINT)
    repository = text()
    repository_id = text()
    uuid = text()
    state = text(validate=validate.OneOf(("ok", "bad", "broken", "pruning")))
    why = text()
    verdict = text(validate=validate.OneOf(("", *VERDICTS)))
    verified = text()
    protected = text()


class DiskVerdictSchema(Strict):
    model = models.DiskVerdict
    target = text(validate=TARGET)
    verdict = text(validate=validate.OneOf(VERDICTS))
    detail = text()
    compared = size()


class BootReportSchema(Strict):
    model = models.BootReport
    booted = f.Boolean(required=True)
    seconds = f.Float(required=True)
    evidence = text()
    screenshot = text()


class SourceReportSchema(Strict):
    model = models.SourceReport
    samples = size()
    compared = size()
    differing = f.List(f.String(), required=True)


class VerdictSchema(Strict):
    model = models.Verdict
    point = text(validate=POINT)
    verdict = text(validate=validate.OneOf(VERDICTS))
    at = text()
    host = text()
    task_id = text()
    detail = text()
    disks = f.List(f.Nested(DiskVerdictSchema), required=True)
    breaks = f.List(f.String(validate=POINT), required=True)
    boot = f.Nested(BootReportSchema, allow_none=True)
    source = f.Nested(SourceReportSchema, allow_none=True)
