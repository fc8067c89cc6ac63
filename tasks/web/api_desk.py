"""What the REST API's operations have to work with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tasks.web.api_ends import Ends
from tasks.web.api_errors import Refused
from tasks.web.page_answers import Answers
from virtvault import Client, queues, runs, schemas
from virtvault.errors import InvalidSettings, UnknownPoint, UnknownTask
from virtvault.models import FleetStatus, Point
from virtvault.runs import RunRecord
from virtvault.settings import Settings
from virtvault.tokens import Token, TokenFile

__all__ = ["Call", "Desk"]

log = logging.getLogger(__name__)

# Questions at a time: each waits for an answer through Redis, for control_timeout at most.
THREADS = 8


@dataclass(frozen=True)
class Call:
    """One request: who makes it, and what it says. ``fleet`` where the operation asks for it."""

    token: Token
    path: str = ""
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    fleet: FleetStatus | None = None

    def demand(self, role: str, what: str) -> None:
        """Let the caller go on where its token may what ``role`` may.

        :raises Refused: 403, naming the role.
        """
        if not self.token.may(role):
            raise Refused(
                403,
                "Forbidden",
                f"{what} needs the role {role}; token {self.token.name} has {self.token.role}.",
                f"Use a token of that role: `virtvault token add NAME --role {role}`.",
            )


class Desk:
    """One for all requests of this process."""

    def __init__(self, settings: Settings) -> None:
        self.client = ApiClient(settings)
        self.tokens = TokenFile(settings.tokens)
        self.threads = ThreadPoolExecutor(THREADS, "api")
        self.answers = Answers(self.threads)
        self.ends = Ends(self.client)
        # Requests that have, or wait for, a thread.
        self.waiting = 0

    def caller(self, authorization: str) -> Token:
        """The token that the header of that name holds.

        :raises Refused: 401 where it is none of ours; 503 where that cannot be told.
        """
        scheme, _, secret = authorization.partition(" ")
        token = None
        if scheme.lower() == "bearer":
            try:
                token = self.tokens.find(secret.strip(), datetime.now(UTC))
            except InvalidSettings as error:
                # Strangers are not told where the file is.
                log.error("%s %s", error.message, error.mend)
                raise Refused(
                    503,
                    "InvalidSettings",
                    "The API's tokens cannot be read.",
                    "Flower's log on the server says why and how to mend it.",
                ) from error
        if token is None:
            raise Refused(
                401,
                "Unauthorized",
                "This needs a bearer token that is known and has not expired.",
                "Send the header `Authorization: Bearer TOKEN`; `virtvault token add` makes one.",
                headers={"WWW-Authenticate": 'Bearer realm="virtvault"'},
            )
        return token


class ApiClient(Client):
    """A client that looks no further than the catalog: nobody's request searches the fleet."""

    def catalogued(self, point: str) -> Point:
        """A point as the catalog has it.

        :raises UnknownPoint: it has none; or it was pruned, and when.
        """
        answer = self._question(queues.CENTRAL, queues.SHOW, point)
        if answer:
            return schemas.load(Point, answer)
        removed = self._question(queues.CENTRAL, queues.FATE, point)["removed"]
        raise UnknownPoint(
            f"Point {point} was pruned on {removed}." if removed else f"No point {point} is known.",
            "GET /v1/points?domain=… lists those that there are.",
        )

    def look(self, task_id: str) -> dict[str, Any]:
        """A task as the API shows it.

        :raises UnknownTask: nobody knows it.
        """
        try:
            handle = self.handle(task_id)
        except UnknownTask:
            return self._ended(task_id)
        state, progress, result, error = handle.look()
        return {
            "task_id": task_id,
            "task": handle.task,
            "host": handle.host,
            "state": state,
            "progress": schemas.dump(progress) if progress else None,
            "result": schemas.dump(result) if result else None,
            "error": _plain(type(error).__name__, error.message, error.mend) if error else None,
        }

    def _ended(self, task_id: str) -> dict[str, Any]:
        """A task that Redis has forgotten: how it ended is in the catalog, its result is not."""
        run = self.run(task_id)
        if run is None:
            raise UnknownTask(
                f"No task {task_id} is known.", "GET /v1/runs lists those that ended."
            )
        state = {"complete": "SUCCESS", "cancelled": "REVOKED"}.get(run.state, "FAILURE")
        word = "Cancelled" if run.state == "cancelled" else "WorkFailed"
        return {
            "task_id": task_id,
            "task": f"virtvault.{run.kind}",
            "host": run.host,
            "state": state,
            "progress": None,
            "result": None,
            "error": None if state == "SUCCESS" else _plain(word, run.error, run.mend),
        }

    def record(self, task_id: str) -> RunRecord:
        """What was asked under a task id.

        :raises UnknownTask: Redis has no record of it (any more).
        """
        with runs.reachable():
            found = RunRecord.read(self.redis, task_id)
        if found is None:
            raise UnknownTask(
                f"No task {task_id} is known to be at work.", "GET /v1/runs lists those that ended."
            )
        return found


def _plain(error: str, message: str, mend: str) -> dict[str, str]:
    return {"error": error, "message": message, "mend": mend}
