"""``virtvault.submit``: long work that another service asks ``central`` for.

The same ``task_id`` again is the same task: what was asked under it is remembered beside the run
record, and by the catalog once it has ended.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

import redis
from celery import Celery

from tasks.catalog import Catalog
from virtvault import Client, queues, runs, schemas
from virtvault.errors import InvalidRequest, VirtvaultError
from virtvault.models import Submission
from virtvault.routing import REQUESTS, Request
from virtvault.runs import RunRecord
from virtvault.settings import Settings

__all__ = ["may_call", "register"]

# What routing fills in: it may have come out differently the second time.
ROUTED = ("domain", "repository")
PORTS = {"http": 80, "https": 443}

Plain = dict[str, Any]


def register(app: Celery, catalog: Catalog, client: redis.Redis, settings: Settings) -> None:
    """Add the task."""
    inside = _Inside(app, settings)

    @app.task(name=queues.SUBMIT, bind=True, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def submit(self: Any, submission: Plain) -> Plain:
        """Gives ``task_id``, ``task``, ``host`` and ``queue`` of the one run that it is."""
        wanted = schemas.load(Submission, submission)
        if not wanted.task_id:
            # From this message's own id: delivered twice, it is still one run.
            own = str(uuid.uuid5(uuid.NAMESPACE_OID, self.request.id))
            wanted = replace(wanted, task_id=own)
        run = _submitted(inside, catalog, client, wanted)
        return {"task_id": run.task_id, "task": run.task, "host": run.host, "queue": run.queue}

    @app.task(name=queues.RUN, send_events=False)  # type: ignore[untyped-decorator]
    def ended(task_id: str) -> Plain | None:
        found = catalog.run(task_id)
        return None if found is None else schemas.dump(found)


def may_call(url: str, allowed: tuple[str, ...]) -> bool:
    """Whether ``url`` begins with one of ``allowed``: scheme, host and port as a whole.

    One with a user's name in it, or with ``..`` in its path, may not.
    """
    wanted = _place(url)
    if wanted is None or "\\" in url:
        return False
    if any(part.partition(";")[0] == ".." for part in unquote(wanted[3]).split("/")):
        return False
    return any(
        place is not None and wanted[:3] == place[:3] and wanted[3].startswith(place[3])
        for place in map(_place, allowed)
    )


class _Inside(Client):
    """A client in the central worker: what it would ask of central it asks of this process.

    Through the queue it would wait for a thread of which it holds one itself.
    """

    def __init__(self, app: Celery, settings: Settings) -> None:
        # Who asks us waits for control_timeout: a silent hypervisor must not use all of it up.
        super().__init__(replace(settings, control_timeout=max(1, settings.control_timeout // 3)))
        self._central = app

    def _question(self, queue: str, task: str, *arguments: Any, **named: Any) -> Any:
        if queue == queues.CENTRAL:
            return self._central.tasks[task](*arguments, **named)
        return super()._question(queue, task, *arguments, **named)


def _submitted(
    inside: _Inside, catalog: Catalog, client: redis.Redis, wanted: Submission
) -> RunRecord:
    """The run of a submission: the one that there is, or a new one on its hypervisor's queue."""
    given = schemas.load(REQUESTS[wanted.task], wanted.request)
    _refuse_callback(wanted.callback, inside.settings.callback_urls)
    asked, key = _digest(wanted, given), _key(wanted.task_id)
    with runs.reachable():
        if before := _before(catalog, client, wanted, given, asked):
            return before
    host, request = inside.route(wanted.task, wanted.request, wanted.host)
    with runs.reachable():
        if not client.set(key, asked, nx=True, ex=runs.KEEP_FINISHED) and (
            before := _before(catalog, client, wanted, given, asked)
        ):
            return before
    if wanted.callback:
        catalog.add_callback(wanted.task_id, wanted.callback)
    run = runs.new_record(
        wanted.task_id, wanted.task, queues.host_queue(host), host, schemas.dump(request)
    )
    runs.submit(inside.app, client, run)
    return run


def _before(
    catalog: Catalog, client: redis.Redis, wanted: Submission, given: Request, asked: str
) -> RunRecord | None:
    """The run that this submission already is.

    :raises InvalidRequest: its ``task_id`` is that of another one.
    """
    known: Any = client.get(_key(wanted.task_id))
    run = RunRecord.read(client, wanted.task_id) or _ended(catalog, wanted.task_id)
    if known is not None:
        same = known.decode() == asked
    elif run is not None:
        # Redis was flushed, or that was long ago.
        same = run.task == wanted.task and _unrouted(run.request) == _unrouted(schemas.dump(given))
    else:
        return None
    if not same:
        raise InvalidRequest(
            f"task_id: {wanted.task_id} is the id of another {run.task if run else 'request'}"
            f"{f' on {run.host}' if run else ''}.",
            "Submit another request under another task_id; the same one again must be the same.",
        )
    return run


def _ended(catalog: Catalog, task_id: str) -> RunRecord | None:
    run, request = catalog.run(task_id), catalog.request(task_id)
    if run is None or request is None:
        return None
    queue = queues.host_queue(run.host)
    return RunRecord(task_id, f"virtvault.{run.kind}", queue, run.host, request, "ended")


def _unrouted(request: Plain) -> Plain:
    return {name: value for name, value in request.items() if name not in ROUTED}


def _digest(wanted: Submission, given: Request) -> str:
    plain = {**schemas.dump(wanted), "request": schemas.dump(given)}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _key(task_id: str) -> str:
    """What was asked under that id, as a digest."""
    return f"virtvault:submission:{task_id}"


def _refuse_callback(url: str, allowed: tuple[str, ...]) -> None:
    if not url or may_call(url, allowed):
        return
    place = _place(url)
    # The rest of a URL may be a secret.
    where = f" of {place[0]}://{place[1]}" if place else ""
    raise InvalidRequest(
        f"callback: this URL{where} is none that may be called.",
        "Name one that begins with one of callback_urls in the central tier's settings (it has "
        f"{len(allowed)}), with neither a user name nor '..' in it.",
    )


def _place(url: str) -> tuple[str, str, int, str] | None:
    """Scheme, host, port, and the rest; None where it is no URL of ours."""
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS[parts.scheme]
    except (ValueError, KeyError):
        return None
    if "@" in parts.netloc or not parts.hostname:
        return None
    rest = parts.path + (f"?{parts.query}" if parts.query else "")
    return parts.scheme, parts.hostname, port, rest
