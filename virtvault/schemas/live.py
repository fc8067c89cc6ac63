"""Schemas of :mod:`virtvault.models.live`."""

from __future__ import annotations

from marshmallow import fields as f
from marshmallow import validate

from virtvault import models
from virtvault.schemas.base import (
    MOMENT,
    NOT_NEGATIVE,
    Strict,
    size,
    text,
)


class DiskProgressSchema(Strict):
    model = models.DiskProgress
    target = text()
    done = f.Integer(required=True)
    total = f.Integer(required=True)
    status = text()


class ProgressSchema(Strict):
    model = models.Progress
    task_id = text()
    phase = text()
    done = f.Integer()
    total = f.Integer()
    rate = f.Float()
    eta = f.Float()
    updated = f.String()
    instant = f.String()
    domain = f.String()
    disks = f.List(f.Nested(DiskProgressSchema))
    exports = f.Dict(keys=f.String(), values=f.String())


class RepositoryInfoSchema(Strict):
    model = models.RepositoryInfo
    name = text()
    id = f.String()
    type = f.String()
    free = f.Integer()
    size = f.Integer()
    why = f.String()


class HostInfoSchema(Strict):
    model = models.HostInfo
    host = text()
    alive = f.Boolean(required=True)
    seen = text()
    libvirt = f.String()
    qemu = f.String()
    domains = f.Integer()
    repositories = f.List(f.String())
    storage = f.List(f.Nested(RepositoryInfoSchema))
    trouble = f.String()


class DomainInfoSchema(Strict):
    model = models.DomainInfo
    name = text()
    uuid = text()
    host = text()
    state = text()
    disks = f.Integer()
    targets = f.List(f.String())
    labels = f.Dict(keys=f.String(), values=f.String())
    transient = f.Boolean()
    active = f.String()


class InventorySchema(Strict):
    model = models.Inventory
    host = text()
    at = text(validate=MOMENT)
    versions = f.Dict(keys=f.String(), values=f.String(), required=True)
    repositories = f.List(f.Nested(RepositoryInfoSchema), required=True)
    domains = f.List(f.Nested(DomainInfoSchema), required=True)
    default = f.String()
    trouble = f.String()


class DiskInfoSchema(Strict):
    model = models.DiskInfo
    target = text()
    bus = text()
    format = text()
    source = text()
    virtual_size = size()
    persistent_bitmaps = f.Boolean(required=True)
    skip = f.String()
    bitmaps = f.List(f.String())


class BitmapInfoSchema(Strict):
    model = models.BitmapInfo
    target = text()
    name = text()
    owner = text(validate=validate.OneOf(("virtvault", "libvirt", "user")))
    purpose = text()
    granularity = size()
    dirty = f.Integer(required=True, strict=True, allow_none=True, validate=NOT_NEGATIVE)
    persistent = f.Boolean(required=True)
    state = text(validate=validate.OneOf(("recording", "disabled", "busy", "inconsistent")))
    image = text()
    active = f.Boolean(required=True)


class BitmapChangesSchema(Strict):
    model = models.BitmapChanges
    domain = text()
    action = text(validate=validate.OneOf(("added", "cleared", "removed")))
    bitmaps = f.List(f.Nested(BitmapInfoSchema), required=True)
    skipped = f.Dict(keys=f.String(), values=f.String(), required=True)


class JobInfoSchema(Strict):
    model = models.JobInfo
    host = text()
    domain = text()
    job = text()
    type = text()
    status = text()
    done = f.Integer(required=True)
    total = f.Integer(required=True)
    speed = f.Integer(required=True)
    task_id = f.String()
    uuid = f.String()
    error = f.String()


class CheckLineSchema(Strict):
    model = models.CheckLine
    subject = text()
    verdict = text(validate=validate.OneOf(("ok", "warning", "failed")))
    detail = text()
    mend = f.String()


class EventSchema(Strict):
    model = models.Event
    at = text(validate=MOMENT)
    host = text()
    event = text()
    domain = text()
    uuid = text()
    data = f.Dict(keys=f.String(), required=True)
