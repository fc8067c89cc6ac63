"""What the REST API takes and gives, beside the models: queries, pages, tasks, errors."""

from __future__ import annotations

from typing import Any

from marshmallow import RAISE, Schema, validate
from marshmallow import fields as f

from virtvault import queues
from virtvault.schemas import base, fleet, live, points, requests
from virtvault.schemas.requests import CALLBACK

__all__ = ["BODIES", "named"]

HEALTHS = ("fresh", "late", "never", "unprotected", "no rpo")
STATES = ("PENDING", "STARTED", "SUCCESS", "FAILURE", "REVOKED")


class Plain(Schema):
    """A schema that refuses unknown fields and makes a dict."""

    class Meta:
        unknown = RAISE


def named(schema: type[Schema]) -> str:
    """What a schema is called in the documents: its model, or its own name."""
    if "model" in vars(schema):
        return str(vars(schema)["model"].__name__)
    return schema.__name__.removesuffix("Schema")


# -- queries --------------------------------------------------------------------------------------


def _which(text: str, **more: Any) -> f.String:
    return f.String(load_default="", metadata={"description": text}, **more)


class NothingSchema(Plain):
    """No parameters."""


class PageSchema(Plain):
    limit = f.Integer(
        load_default=100,
        validate=validate.Range(min=1, max=1000),
        metadata={"description": "So many items at most."},
    )
    offset = f.Integer(
        load_default=0,
        validate=validate.Range(min=0, max=100_000),
        metadata={"description": "So many are left out first; `next` of the page before."},
    )


class PointsSchema(PageSchema):
    domain = f.String(
        required=True,
        validate=base.DOMAIN,
        metadata={"description": "A name or a uuid: points are listed domain by domain."},
    )


class DomainsSchema(PageSchema):
    health = _which("Only these.", validate=validate.OneOf(HEALTHS))
    host = _which("Only those on this hypervisor.")
    name = _which("Only those whose name this shell pattern fits.")
    label = _which("Only those with this label: `KEY` or `KEY=VALUE`.")


class RunsSchema(PageSchema):
    since = _which("Only those that ended after it (UTC) or are at work.", validate=base.MOMENT)
    domain = _which("Only those of this domain: a name or a uuid.")
    policy = _which("Only those of this policy.")


class AlertsSchema(Plain):
    closed_since = _which("Also those that were closed since then (UTC).", validate=base.MOMENT)


class WaitSchema(Plain):
    seconds = f.Integer(
        load_default=30,
        validate=validate.Range(min=0, max=60),
        metadata={"description": "Answer after so many seconds at the latest."},
    )


class EventsSchema(Plain):
    last = f.Integer(
        load_default=0,
        validate=validate.Range(min=0, max=1000),
        metadata={"description": "So many that ended before come first."},
    )


# -- bodies ---------------------------------------------------------------------------------------


def _body(request: type[base.Strict], name: str) -> type[Schema]:
    """A request, with where it goes and who is told beside its fields."""
    more = {
        "__module__": __name__,
        "model": type(name, (request.model,), {"__doc__": request.model.__doc__}),
        "host": f.String(
            validate=validate.Length(max=100),
            metadata={"description": "The hypervisor that is meant. Default: the one that fits."},
        ),
        "callback": f.String(
            validate=CALLBACK,
            metadata={"description": "A URL that is told by POST when the task has ended."},
        ),
    }
    return type(name, (request,), more)


# By long task. A body's fields but `host` and `callback` are the task's request.
BODIES: dict[str, type[Schema]] = {
    queues.BACKUP: _body(requests.BackupRequestSchema, "Backup"),
    queues.RESTORE: _body(requests.RestoreRequestSchema, "Restore"),
    queues.VERIFY: _body(requests.VerifyRequestSchema, "Verify"),
    queues.PRUNE: _body(requests.PruneRequestSchema, "Prune"),
    queues.SERVE: _body(requests.ServeRequestSchema, "Export"),
}

# -- answers --------------------------------------------------------------------------------------


class ErrorSchema(Plain):
    """What went wrong, and what to do next. `fields` names the fields that are wrong."""

    error = f.String(required=True)
    message = f.String(required=True)
    mend = f.String(required=True)
    fields_ = f.Dict(attribute="fields", data_key="fields", keys=f.String())


class SubmittedSchema(Plain):
    """The one run that a submission is."""

    task_id = f.String(required=True)
    task = f.String(required=True, validate=validate.OneOf(queues.LONG_TASKS))
    host = f.String(required=True)
    queue = f.String(required=True)


class TaskSchema(Plain):
    """A long task. `result` is there after SUCCESS, `error` after FAILURE and REVOKED."""

    task_id = f.String(required=True)
    task = f.String(required=True, validate=validate.OneOf(queues.LONG_TASKS))
    host = f.String(required=True)
    state = f.String(required=True, validate=validate.OneOf(STATES))
    progress = f.Nested(live.ProgressSchema, required=True, allow_none=True)
    result = f.Dict(required=True, allow_none=True)
    error = f.Nested(ErrorSchema, required=True, allow_none=True)


class SaidSchema(Plain):
    """What was done, in a sentence."""

    message = f.String(required=True)


class StoredPointSchema(Plain):
    """A point, and how it is now; `status` is null where that was never told."""

    point = f.Nested(points.PointSchema, required=True)
    status = f.Nested(points.PointStatusSchema, required=True, allow_none=True)


class StatusSchema(Plain):
    """The fleet at `at`; its domains are listed by `/v1/domains`."""

    at = f.String(required=True)
    totals = f.Nested(fleet.FleetTotalsSchema, required=True)
    hosts = f.List(f.Nested(live.HostInfoSchema), required=True)
    policy_version = f.Integer(required=True)
    beat = f.String(required=True)


def _page(item: type[Schema], name: str) -> type[Schema]:
    return type(
        name,
        (Plain,),
        {
            "__module__": __name__,
            "__doc__": "One page. `next` is the offset of the one after it, null at the end.",
            "items": f.List(f.Nested(item), required=True),
            "next": f.Integer(required=True, allow_none=True),
        },
    )


PointsPage = _page(StoredPointSchema, "PointsPage")
DomainsPage = _page(fleet.DomainStatusSchema, "DomainsPage")
RunsPage = _page(fleet.RunInfoSchema, "RunsPage")
AlertsPage = _page(fleet.AlertSchema, "AlertsPage")
HostsPage = _page(live.HostInfoSchema, "HostsPage")
