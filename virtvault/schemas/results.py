"""Schemas of :mod:`virtvault.models.results`."""

from __future__ import annotations

from marshmallow import fields as f
from marshmallow import validate

from virtvault import models
from virtvault.schemas.base import (
    POINT,
    TARGET,
    Strict,
    size,
    text,
)
from virtvault.schemas.points import DisksMixin, VerdictSchema


class BackupResultSchema(DisksMixin):
    model = models.BackupResult
    point = text(validate=POINT)
    state = text(validate=validate.OneOf(("complete",)))
    job_seconds = f.Float(required=True)


class ExportedDiskSchema(Strict):
    model = models.ExportedDisk
    target = text(validate=TARGET)
    url = text()
    virtual_size = size()
    scratch = size()


class ExportResultSchema(Strict):
    model = models.ExportResult
    task_id = text()
    domain = text()
    uuid = text()
    host = text()
    state = text()
    consistency = text()
    instant = text()
    paused_ms = f.Float(required=True)
    frozen_ms = f.Float(required=True)
    started = text()
    finished = text()
    exports = f.List(f.Nested(ExportedDiskSchema), required=True)
    skipped = f.Dict(keys=f.String(), values=f.String(), required=True)
    notes = f.List(f.String(), required=True)


class RestoredDiskSchema(Strict):
    model = models.RestoredDisk
    target = text(validate=TARGET)
    path = text()
    format = text()
    virtual_size = size()
    stored = size()


class RestoreResultSchema(Strict):
    model = models.RestoreResult
    task_id = text()
    point = text(validate=POINT)
    domain = text()
    host = text()
    repository = text()
    mode = text()
    to = text()
    state = text()
    started = text()
    finished = text()
    disks = f.List(f.Nested(RestoredDiskSchema), required=True)
    name = f.String()
    domain_uuid = f.String()
    booted = f.String()
    notes = f.List(f.String())


class VerifyResultSchema(Strict):
    model = models.VerifyResult
    task_id = text()
    host = text()
    repository = text()
    state = text()
    started = text()
    finished = text()
    verdicts = f.List(f.Nested(VerdictSchema), required=True)


class ServeResultSchema(Strict):
    model = models.ServeResult
    task_id = text()
    point = text(validate=POINT)
    domain = text()
    host = text()
    repository = text()
    state = text()
    started = text()
    finished = text()


class KeptPointSchema(Strict):
    model = models.KeptPoint
    point = text(validate=POINT)
    domain = text()
    reasons = f.List(f.String(), required=True)


class RemovedPointSchema(Strict):
    model = models.RemovedPoint
    point = text(validate=POINT)
    domain = text()
    into = f.List(f.String(validate=POINT), required=True)
    freed = size()


class PruneResultSchema(Strict):
    model = models.PruneResult
    task_id = text()
    host = text()
    repository = text()
    state = text()
    dry_run = f.Boolean(required=True)
    started = text()
    finished = text()
    kept = f.List(f.Nested(KeptPointSchema), required=True)
    removed = f.List(f.Nested(RemovedPointSchema), required=True)
    postponed = f.Dict(keys=f.String(), values=f.String(), required=True)
