"""Schemas of :mod:`virtvault.models.fleet`."""

from __future__ import annotations

from marshmallow import fields as f
from marshmallow import validate

from virtvault import models
from virtvault.schemas.base import Strict, text
from virtvault.schemas.live import HostInfoSchema


class RunInfoSchema(Strict):
    model = models.RunInfo
    task_id = text()
    kind = text()
    host = text()
    state = text(validate=validate.OneOf(("running", "complete", "failed", "cancelled")))
    started = text()
    finished = f.String()
    domain = f.String()
    uuid = f.String()
    repository = f.String()
    policy = f.String()
    slot = f.String()
    point = f.String()
    sync = f.String()
    seconds = f.Float()
    transferred = f.Integer()
    stored = f.Integer()
    error = f.String()
    mend = f.String()


class SlotRecordSchema(Strict):
    model = models.SlotRecord
    policy = text()
    uuid = text()
    kind = text(validate=validate.OneOf(models.KINDS))
    slot = text()
    state = text(validate=validate.OneOf(("dispatched", "skipped", "missed", "failed")))
    at = text()
    attempt = f.Integer()
    task_id = f.String()
    host = f.String()
    domain = f.String()
    repository = f.String()
    reason = f.String()


class DomainStatusSchema(Strict):
    model = models.DomainStatus
    domain = text()
    uuid = text()
    host = text()
    state = text()
    health = text(validate=validate.OneOf(("fresh", "late", "never", "unprotected", "no rpo")))
    labels = f.Dict(keys=f.String(), values=f.String())
    policies = f.List(f.String())
    rpo = f.Integer()
    newest = f.String()
    instant = f.String()
    age = f.Float()
    chain = f.Integer()
    points = f.Integer()
    stored = f.Integer()
    running = f.String()
    error = f.String()
    mend = f.String()
    error_at = f.String()


class FleetTotalsSchema(Strict):
    model = models.FleetTotals
    hosts = f.Integer()
    hosts_gone = f.Integer()
    domains = f.Integer()
    fresh = f.Integer()
    late = f.Integer()
    never = f.Integer()
    no_rpo = f.Integer()
    unprotected = f.Integer()
    unreachable = f.Integer()
    failing = f.Integer()
    running = f.Integer()
    points = f.Integer()
    stored = f.Integer()


class FleetStatusSchema(Strict):
    model = models.FleetStatus
    at = text()
    totals = f.Nested(FleetTotalsSchema, required=True)
    domains = f.List(f.Nested(DomainStatusSchema), required=True)
    hosts = f.List(f.Nested(HostInfoSchema), required=True)
    policy_version = f.Integer()
    beat = f.String()


class AlertSchema(Strict):
    model = models.Alert
    kind = text(validate=validate.OneOf(("failed", "rpo", "host", "beat", "notice")))
    subject = text()
    opened = text()
    detail = text()
    mend = f.String()
    closed = f.String()
    domain = f.String()
    uuid = f.String()
    host = f.String()
    policy = f.String()
