"""What the REST API does: one function for each operation, run in a thread.

:data:`OPERATIONS` is what both the server and the OpenAPI document are made of.

Roles: a *viewer* looks. An *operator* also does what adds and neither loses nor gives out
anything: backups, verifies, a prune's dry run, and cancelling these. *restore* is also needed for
what brings data out of the repositories (restore, export, a backup with ``sync`` ``none``) or
removes it from there (prune).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from marshmallow import Schema, ValidationError

from tasks.web import api_schemas as shapes
from tasks.web.api_desk import Call, Desk
from tasks.web.api_errors import Refused
from virtvault import queues, schemas
from virtvault.errors import InvalidRequest, NotReachable, UnknownDomain
from virtvault.models import DomainStatus, Submission
from virtvault.routing import REQUESTS
from virtvault.schemas.base import POINT
from virtvault.schemas.fleet import DomainStatusSchema, RunInfoSchema
from virtvault.schemas.requests import TASK_ID

__all__ = ["OPERATIONS", "Operation"]

Plain = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """One method of one path. ``run`` gives the body of the answer."""

    method: str
    path: str
    role: str
    summary: str
    run: Callable[[Desk, Call], Plain]
    gives: type[Schema]
    query: type[Schema] = shapes.NothingSchema
    # The long task whose request is the body.
    task: str = ""
    fleet: bool = False
    # ``plain``; ``wait``: asked again until the task has ended; ``stream``: server-sent events.
    way: str = "plain"


# -- submit, cancel ---------------------------------------------------------------------------


def _needs(task: str, request: Mapping[str, Any]) -> str:
    """The role that this work needs."""
    if task == queues.VERIFY or (task == queues.BACKUP and request.get("sync") != "none"):
        return "operator"
    if task == queues.PRUNE and request.get("dry_run") is True:
        return "operator"
    return "restore"


def _submits(task: str) -> Callable[[Desk, Call], Plain]:
    def submit(desk: Desk, call: Call) -> Plain:
        call.demand(_needs(task, call.body), _words(task, call.body))
        request = {k: v for k, v in call.body.items() if k not in ("host", "callback")}
        beside = {k: v for k, v in call.body.items() if k in ("host", "callback")}
        _check_key(call.key)
        schemas.load(REQUESTS[task], request)
        task_id = call.key or str(uuid4())
        wanted = schemas.load(
            Submission, {"task": task, "request": request, "task_id": task_id, **beside}
        )
        try:
            handle = desk.client.submit(wanted)
        except NotReachable as error:
            raise NotReachable(
                error.message,
                f"{error.mend} Then send it again with the header Idempotency-Key: {task_id}; it "
                "stays one task, should it have been enqueued.",
            ) from error
        return {
            "task_id": handle.task_id,
            "task": task,
            "host": handle.host,
            "queue": queues.host_queue(handle.host),
        }

    return submit


def _words(task: str, request: Mapping[str, Any]) -> str:
    if task == queues.BACKUP and request.get("sync") == "none":
        return "A backup with sync none, which gives data out,"
    return {
        queues.BACKUP: "A backup",
        queues.RESTORE: "A restore",
        queues.VERIFY: "A verify",
        queues.PRUNE: "A prune that is no dry run"
        if request.get("dry_run") is not True
        else "A prune",
        queues.SERVE: "An export",
    }[task]


def _check_key(key: str) -> None:
    try:
        TASK_ID(key)
    except ValidationError as error:
        raise InvalidRequest(
            f"Idempotency-Key: {error.messages[0]}.", "A new UUID for each request will do."
        ) from error


def _cancel(desk: Desk, call: Call) -> Plain:
    run = desk.client.record(call.path)
    call.demand(_needs(run.task, run.request), f"To cancel a {run.task.partition('.')[2]} task")
    return {"message": desk.client.cancel(run.task_id)}


# -- look -------------------------------------------------------------------------------------


def _task(desk: Desk, call: Call) -> Plain:
    found = desk.client.look(call.path)
    if found["progress"] and not call.token.may("restore"):
        # Where disks are served is for who may have them served.
        found["progress"]["exports"] = {}
    return found


def _points(desk: Desk, call: Call) -> Plain:
    domain = call.query["domain"]
    states = {(s.repository_id, s.point): s for s in desk.client.statuses(domain)}
    pairs = [(p, states.get((p.repository_id, p.id))) for p in desk.client.points(domain)]

    def show(pair: tuple[Any, Any]) -> Plain:
        point, status = pair
        return {"point": schemas.dump(point), "status": schemas.dump(status) if status else None}

    return _page(call, pairs, show)


def _point(desk: Desk, call: Call) -> Plain:
    try:
        POINT(call.path)
    except ValidationError:
        raise Refused(
            404,
            "UnknownPoint",
            f"No point {call.path!r} is known.",
            "A point's id is as GET /v1/points?domain=… shows it.",
        ) from None
    point, status = desk.client.catalogued(call.path), desk.client.status(call.path)
    return {"point": schemas.dump(point), "status": schemas.dump(status) if status else None}


def _status(desk: Desk, call: Call) -> Plain:
    assert call.fleet is not None
    plain = schemas.dump(call.fleet)
    del plain["domains"]
    return plain


def _domains(desk: Desk, call: Call) -> Plain:
    assert call.fleet is not None
    return _page(call, [d for d in call.fleet.domains if _fits(d, call.query)], schemas.dump)


def _fits(domain: DomainStatus, query: Mapping[str, Any]) -> bool:
    key, equals, value = query["label"].partition("=")
    return (
        query["health"] in ("", domain.health)
        and query["host"] in ("", domain.host)
        and (not query["name"] or fnmatch.fnmatchcase(domain.domain, query["name"]))
        and (not key or (key in domain.labels and (not equals or domain.labels[key] == value)))
    )


def _domain(desk: Desk, call: Call) -> Plain:
    found = desk.client.fleet(call.path).domains
    if not found:
        raise UnknownDomain(f"No domain {call.path!r} is known.", "GET /v1/domains lists them.")
    return schemas.dump(found[0])


def _hosts(desk: Desk, call: Call) -> Plain:
    return _page(call, desk.client.hosts(), schemas.dump)


def _runs(desk: Desk, call: Call) -> Plain:
    query = call.query
    found = desk.client.runs(
        since=query["since"],
        domain=query["domain"],
        policy=query["policy"],
        limit=query["offset"] + query["limit"] + 1,
    )
    return _page(call, found, schemas.dump)


def _alerts(desk: Desk, call: Call) -> Plain:
    found = desk.client.alerts(closed_since=call.query["closed_since"])
    return {"items": [schemas.dump(one) for one in found], "next": None}


def _events(desk: Desk, call: Call) -> Plain:
    """The ends that come first; what comes then is streamed."""
    last = call.query["last"]
    found = list(desk.client.ends(last=last)) if last else []
    return {"items": [schemas.dump(one) for one in found]}


def _page(call: Call, found: Sequence[Any], show: Callable[[Any], Plain]) -> Plain:
    offset = call.query["offset"]
    end = offset + call.query["limit"]
    items = [show(one) for one in found[offset:end]]
    return {"items": items, "next": end if len(found) > end else None}


OPERATIONS = (
    *(
        Operation(
            "POST", f"/v1/{name}", role, summary, _submits(task), shapes.SubmittedSchema, task=task
        )
        for name, task, role, summary in (
            ("backups", queues.BACKUP, "operator", "Back up a domain."),
            ("verifies", queues.VERIFY, "operator", "Prove that points are what they were."),
            ("restores", queues.RESTORE, "restore", "Bring a point's disks back."),
            ("exports", queues.SERVE, "restore", "Serve a point's disks over NBD."),
            ("prunes", queues.PRUNE, "operator", "Remove points that rules do not keep."),
        )
    ),
    Operation("GET", "/v1/tasks/{id}", "viewer", "One task.", _task, shapes.TaskSchema),
    Operation(
        "GET",
        "/v1/tasks/{id}/wait",
        "viewer",
        "One task, as soon as it has ended or the time is up.",
        _task,
        shapes.TaskSchema,
        query=shapes.WaitSchema,
        way="wait",
    ),
    Operation(
        "POST", "/v1/tasks/{id}/cancel", "operator", "Cancel a task.", _cancel, shapes.SaidSchema
    ),
    Operation(
        "GET",
        "/v1/points",
        "viewer",
        "A domain's points, oldest first.",
        _points,
        shapes.PointsPage,
        query=shapes.PointsSchema,
    ),
    Operation("GET", "/v1/points/{id}", "viewer", "One point.", _point, shapes.StoredPointSchema),
    Operation(
        "GET",
        "/v1/status",
        "viewer",
        "The fleet in numbers, and its hypervisors.",
        _status,
        shapes.StatusSchema,
        fleet=True,
    ),
    Operation(
        "GET",
        "/v1/domains",
        "viewer",
        "Domains, and how fresh their newest points are.",
        _domains,
        shapes.DomainsPage,
        query=shapes.DomainsSchema,
        fleet=True,
    ),
    Operation(
        "GET",
        "/v1/domains/{id}",
        "viewer",
        "One domain, by its uuid or name.",
        _domain,
        DomainStatusSchema,
    ),
    Operation(
        "GET",
        "/v1/hosts",
        "viewer",
        "The hypervisors heard of.",
        _hosts,
        shapes.HostsPage,
        query=shapes.PageSchema,
    ),
    Operation(
        "GET",
        "/v1/runs",
        "viewer",
        "Runs that ended or are at work, newest first.",
        _runs,
        shapes.RunsPage,
        query=shapes.RunsSchema,
    ),
    Operation(
        "GET",
        "/v1/alerts",
        "viewer",
        "What is wrong now.",
        _alerts,
        shapes.AlertsPage,
        query=shapes.AlertsSchema,
    ),
    Operation(
        "GET",
        "/v1/events",
        "viewer",
        "Runs as they end: server-sent events `run`, each a RunInfo.",
        _events,
        RunInfoSchema,
        query=shapes.EventsSchema,
        way="stream",
    ),
)
