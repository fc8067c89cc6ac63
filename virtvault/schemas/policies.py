"""Schemas of :mod:`virtvault.models.policies`, which a policy file is made of."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime
from typing import Any

from cronsim import CronSim, CronSimError
from marshmallow import ValidationError, validate, validates_schema
from marshmallow import fields as f

from virtvault import models
from virtvault.schemas.base import NAME, NOT_NEGATIVE, TARGET, Strict, text
from virtvault.schemas.requests import RetentionRulesSchema
from virtvault.schemas.units import Duration, Speed, Spread

# Seconds of a window where none is given with cron, and that may be given.
CRON_WINDOW, LONGEST_WINDOW = 3600, 31 * 86400
PATTERN = validate.Length(min=1, max=300, error="must be 1 to 300 characters")
LABEL = validate.Regexp(
    r"^[A-Za-z_][A-Za-z0-9_.-]{0,99}\Z", error="use letters, digits, '_', '.', '-'"
)
UUID = validate.Regexp(
    r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", error="must be a uuid, in lower case"
)


def _zone(name: str) -> None:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValidationError("must be an IANA time zone such as Europe/Vienna") from error


def _cron(expression: str) -> None:
    if not expression:
        return
    if len(expression) > 300 or len(expression.split()) != 5:
        raise ValidationError("must have five fields: minute hour day month weekday")
    try:
        next(CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise ValidationError(f"is not a cron expression: {error}") from error
    except StopIteration as error:
        raise ValidationError("never comes: no such day") from error


class SelectorSchema(Strict):
    model = models.Selector
    hosts = f.List(f.String(validate=PATTERN))
    names = f.List(f.String(validate=PATTERN))
    uuids = f.List(f.String(validate=UUID))
    labels = f.Dict(keys=f.String(validate=LABEL), values=f.String(validate=PATTERN))


class ScheduleSchema(Strict):
    model = models.Schedule
    cron = f.String(validate=_cron)
    every = Duration()
    timezone = f.String(validate=_zone)
    window = Duration()
    spread = Spread()

    @validates_schema
    def _one(self, data: dict[str, Any], **_: Any) -> None:
        cron, every = data.get("cron"), data.get("every")
        if bool(cron) == bool(every):
            raise ValidationError("give either cron or every", "cron")
        if every and every < 60:
            raise ValidationError("must be a minute or more", "every")
        if data.get("window", 0) > LONGEST_WINDOW:
            raise ValidationError("must be 31 days at most", "window")
        if every and data.get("timezone", "UTC") != "UTC":
            raise ValidationError("goes with cron: every counts from midnight UTC", "timezone")
        if data.get("spread", -1) > (data.get("window") or every or CRON_WINDOW):
            raise ValidationError("must fit into the window", "spread")


class FullEverySchema(Strict):
    model = models.FullEvery
    points = f.Integer(strict=True, validate=NOT_NEGATIVE)
    days = f.Integer(strict=True, validate=NOT_NEGATIVE)


class LimitsSchema(Strict):
    model = models.Limits
    per_host = f.Integer(strict=True, validate=NOT_NEGATIVE)
    per_repository = f.Integer(strict=True, validate=NOT_NEGATIVE)
    total = f.Integer(strict=True, validate=NOT_NEGATIVE)


NO_RULES = models.RetentionRules()


class PolicyRulesSchema(RetentionRulesSchema):
    within = Duration()  # type: ignore[assignment]


class PolicySchema(Strict):
    model = models.Policy
    name = text(validate=NAME)
    select = f.Nested(SelectorSchema, required=True)
    schedule = f.Nested(ScheduleSchema, required=True)
    exclude = f.Nested(SelectorSchema)  # type: ignore[assignment]
    disks = f.List(f.String(validate=TARGET))
    repository = f.String(validate=validate.Length(max=100))
    sync = f.String(validate=validate.OneOf(("incremental", "full")))
    full_every = f.Nested(FullEverySchema)
    retention = f.Nested(PolicyRulesSchema)
    rpo = Duration()
    freeze = f.String(validate=validate.OneOf(models.FREEZE_MODES))
    speed = Speed()
    priority = f.Integer(strict=True, validate=validate.Range(min=-1000, max=1000))
    limits = f.Nested(LimitsSchema)
    late = f.String(validate=validate.OneOf(("run", "skip")))
    verify = f.Nested(ScheduleSchema, allow_none=True)
    boot_test = f.Nested(ScheduleSchema, allow_none=True)
    prune = f.Nested(ScheduleSchema, allow_none=True)
    enabled = f.Boolean(truthy={True}, falsy={False})

    @validates_schema
    def _holds_together(self, data: dict[str, Any], **_: Any) -> None:
        if data.get("select") == models.Selector():
            raise ValidationError('means no domain: name some, or all with names: ["*"]', "select")
        if data.get("prune") and data.get("retention", NO_RULES) == NO_RULES:
            raise ValidationError("removes what retention does not keep: give retention", "prune")


class PolicyDocumentSchema(Strict):
    model = models.PolicyDocument
    policies = f.List(f.Nested(PolicySchema), required=True)
    limits = f.Nested(LimitsSchema)

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _unique(self, data: dict[str, Any], original: Any, **_: Any) -> None:
        given = original.get("policies") if isinstance(original, dict) else None
        seen: set[str] = set()
        twice: dict[int, Any] = {}
        for number, policy in enumerate(given if isinstance(given, list | tuple) else ()):
            name = policy.get("name") if isinstance(policy, dict) else None
            if isinstance(name, str):
                if name in seen:
                    twice[number] = {"name": [f"there is a policy {name!r} above"]}
                seen.add(name)
        if twice:
            raise ValidationError({"policies": twice})


class PolicyVersionSchema(Strict):
    model = models.PolicyVersion
    number = f.Integer(required=True)
    applied = text()
    by = f.String()
    comment = f.String()
    policies = f.Integer()
    text = f.String()
    document = f.Nested(PolicyDocumentSchema, allow_none=True)


class PlannedRunSchema(Strict):
    model = models.PlannedRun
    at = text()
    slot = text()
    kind = text()
    policy = text()
    domain = text()
    uuid = text()
    host = text()
    repository = text()


class MatchedDomainSchema(Strict):
    model = models.MatchedDomain
    domain = text()
    uuid = text()
    host = text()
    policies = f.List(f.String())
    shadowed = f.Dict(keys=f.String(), values=f.String())
    kept = f.Dict(keys=f.String(), values=f.List(f.String()))
    removed = f.Dict(keys=f.String(), values=f.List(f.String()))


class PreviewSchema(Strict):
    model = models.Preview
    at = text()
    hours = f.Integer(required=True)
    domains = f.List(f.Nested(MatchedDomainSchema), required=True)
    unprotected = f.List(f.String(), required=True)
    runs = f.List(f.Nested(PlannedRunSchema), required=True)
    total_runs = f.Integer(required=True)
    warnings = f.List(f.String())
    per_hour = f.Dict(keys=f.String(), values=f.List(f.Integer()))
    protected = f.Integer()
    gains = f.List(f.String())
    loses = f.List(f.String())
