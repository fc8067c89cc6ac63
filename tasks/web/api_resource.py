"""The REST API over HTTP: tokens, JSON, errors, waiting, streams. Nothing blocks Tornado's loop."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from flower.options import options
from marshmallow import ValidationError
from tornado.iostream import StreamClosedError
from tornado.web import RequestHandler, stream_request_body, url

from tasks.web.api_desk import Call, Desk
from tasks.web.api_document import openapi
from tasks.web.api_ends import Full
from tasks.web.api_errors import Refused, no_number, no_twins, refuse_fields, refused
from tasks.web.api_operations import OPERATIONS, Operation
from tasks.web.page_answers import Answer
from virtvault import schemas
from virtvault.errors import VirtvaultError
from virtvault.handle import READY
from virtvault.settings import Settings

__all__ = ["routes"]

# Bytes. The largest request of ours names a few hundred points.
BODY_LIMIT = 64 * 1024
# What is read of a body that is not wanted; of a longer one the connection is cut.
READ_LIMIT = 2**20
# Requests that may wait for a thread until new ones are refused.
WAITING_LIMIT = 100
# Seconds between two looks at a task that somebody waits for.
LOOK_AGAIN = 0.5
# Seconds that an answer about the whole fleet is good for: pages of one list cost one question.
FLEET_SECONDS = 5.0
# Seconds between two signs of life on a stream, so that what stands between does not cut it.
ALIVE = 15.0


def routes(settings: Settings) -> list[Any]:
    """The routes of all operations, with one desk behind them."""
    desk = Desk(settings)
    prefix = f"/{options.url_prefix.strip('/')}" if options.url_prefix else ""
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    found = [
        url(
            prefix + re.sub(r"\{\w+\}", "([^/]+)", path),
            Resource,
            {"desk": desk, "operations": operations, "prefix": prefix},
        )
        for path, operations in by_path.items()
    ]
    nothing: dict[str, Any] = {"desk": desk, "operations": {}, "prefix": prefix}
    return [
        *found,
        url(f"{prefix}/v1/openapi.json", Document, nothing),
        url(f"{prefix}/v1(?:/.*)?", Resource, nothing),
    ]


@stream_request_body
class Resource(RequestHandler):
    """One path. A token is asked for before anything else is read or told."""

    def initialize(self, desk: Desk, operations: Mapping[str, Operation], prefix: str) -> None:
        self.desk, self.operations, self.prefix = desk, operations, prefix
        self._body = bytearray()
        self._refusal: Refused | None = None
        self._gone = asyncio.Event()

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    # No cookie is read or set, so there is nothing that another site's page could ride on.
    def check_xsrf_cookie(self) -> None:
        """Nothing: see above."""

    def prepare(self) -> None:
        # The body is read in any case: an answer before it would be lost with the connection.
        connection: Any = self.request.connection
        connection.set_max_body_size(READ_LIMIT)
        try:
            self._admit()
        except Refused as refusal:
            self._refusal = refusal

    def data_received(self, chunk: bytes) -> None:
        if self._refusal is None:
            self._body += chunk
            if len(self._body) > BODY_LIMIT:
                self._body.clear()
                self._refusal = Refused(
                    413,
                    "TooLarge",
                    f"The body is larger than {BODY_LIMIT} bytes.",
                    "Ask for less at a time.",
                )

    def on_connection_close(self) -> None:
        self._gone.set()

    async def get(self, path: str = "") -> None:
        self._go_on()
        call = await self._call(path)
        if self.operation.way == "stream":
            await self._stream(call)
            return
        answer = await self._ask(call)
        if self.operation.way == "wait":
            answer = await self._wait(call, answer)
        self._answer(answer)

    async def post(self, path: str = "") -> None:
        self._go_on()
        answer = await self._ask(await self._call(path))
        if self.operation.task:
            self.set_header("Location", f"{self.prefix}/v1/tasks/{answer['task_id']}")
        self._answer(answer, 202)

    async def refuse(self, path: str = "") -> None:
        """No operation has one of these methods."""
        self._go_on()

    put = patch = delete = options = head = refuse

    # -- admitting ----------------------------------------------------------------------------

    def _admit(self) -> None:
        self.token = self.desk.caller(self.request.headers.get("Authorization", ""))
        if not self.operations:
            raise Refused(404, "NotFound", "There is nothing here.", "GET /v1/openapi.json.")
        operation = self.operations.get(self.request.method or "")
        if operation is None:
            allowed = ", ".join(self.operations)
            raise Refused(
                405,
                "MethodNotAllowed",
                f"{self.request.method} is not possible here.",
                f"Possible is {allowed}.",
                headers={"Allow": allowed},
            )
        self.operation = operation
        Call(self.token).demand(operation.role, f"{operation.method} {operation.path}")

    def _go_on(self) -> None:
        if self._refusal is not None:
            raise self._refusal

    # -- asking -------------------------------------------------------------------------------

    async def _call(self, path: str) -> Call:
        """The request as the operation takes it: checked, and allowed to this token."""
        call = Call(
            self.token,
            path,
            self._query(),
            self._json(),
            self.request.headers.get("Idempotency-Key", ""),
        )
        if self.operation.fleet:
            answer: Answer = await self.desk.answers.get(
                "fleet", self.desk.client.fleet, FLEET_SECONDS
            )
            if answer.trouble is not None:
                raise answer.trouble
            call = Call(call.token, path, call.query, fleet=answer.value)
        return call

    def _query(self) -> dict[str, Any]:
        given = {name: self.get_query_arguments(name) for name in self.request.query_arguments}
        for name, values in given.items():
            if len(values) > 1:
                refuse_fields({name: ["is there twice"]})
        try:
            query: dict[str, Any] = self.operation.query().load({k: v[0] for k, v in given.items()})
        except ValidationError as error:
            refuse_fields(error.messages, sorted(self.operation.query().fields))
        return query

    def _json(self) -> dict[str, Any]:
        if not self.operation.task:
            if bytes(self._body).strip() not in (b"", b"{}"):
                raise Refused(400, "BadRequest", "This takes no body.", "Send none.")
            return {}
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(
                415,
                "UnsupportedMediaType",
                f"The body is {kind or 'of no type'}, not application/json.",
                "Send JSON with the header `Content-Type: application/json`.",
            )
        try:
            body = json.loads(self._body, parse_constant=no_number, object_pairs_hook=no_twins)
        except (ValueError, RecursionError) as error:
            raise Refused(
                400, "BadRequest", f"The body is not JSON: {error}.", "Mend that."
            ) from error
        if not isinstance(body, dict):
            raise Refused(400, "BadRequest", "The body is no JSON object.", "Send an object.")
        return body

    async def _ask(self, call: Call) -> dict[str, Any]:
        return await self._threaded(lambda: self.operation.run(self.desk, call))

    async def _threaded(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if self.desk.waiting >= WAITING_LIMIT:
            raise Refused(
                503,
                "Busy",
                f"{WAITING_LIMIT} requests wait already.",
                "Send it again later; see whether Redis and central answer.",
                headers={"Retry-After": "5"},
            )
        self.desk.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.desk.threads, work)
        finally:
            self.desk.waiting -= 1

    async def _wait(self, call: Call, answer: dict[str, Any]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        until = loop.time() + call.query["seconds"]
        while answer["state"] not in READY and loop.time() < until and not self._gone.is_set():
            await self._pause(min(LOOK_AGAIN, until - loop.time()))
            answer = await self._ask(call)
        return answer

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._gone.wait(), max(0.0, seconds))
        except TimeoutError:
            return

    # -- answering ----------------------------------------------------------------------------

    def _answer(self, body: Mapping[str, Any], status: int = 200) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(body, ensure_ascii=False))

    async def _stream(self, call: Call) -> None:
        """Server-sent events until the client goes, or is too slow."""
        try:
            # Before those that were are read: one may come twice, none is left out between.
            queue = self.desk.ends.join()
        except Full:
            raise Refused(
                503,
                "Busy",
                "Too many are listening.",
                "Try again later.",
                headers={"Retry-After": "30"},
            ) from None
        try:
            before = (await self._ask(call))["items"]
            self.set_header("Content-Type", "text/event-stream")
            # A proxy must not collect what is said until there is much of it.
            self.set_header("X-Accel-Buffering", "no")
            self.write(": ends of runs\n\n")
            for one in before:
                self._event(one)
            await self.flush()
            while not self._gone.is_set():
                try:
                    run = await asyncio.wait_for(queue.get(), ALIVE)
                    said = None if run is None else schemas.dump(run)
                except TimeoutError:
                    said = {}
                if said is None or not self._still_admitted():
                    break
                if said:
                    self._event(said)
                else:
                    self.write(": alive\n\n")
                await self.flush()
        except StreamClosedError:
            return
        finally:
            self.desk.ends.leave(queue)

    def _still_admitted(self) -> bool:
        """Whether the token holds: a stream may last longer than it does."""
        try:
            self.desk.caller(self.request.headers.get("Authorization", ""))
        except Refused:
            return False
        return True

    def _event(self, run: Mapping[str, Any]) -> None:
        self.write(f"event: run\nid: {run['task_id']}\ndata: {json.dumps(run)}\n\n")

    def log_exception(self, kind: Any, error: Any, trace: Any) -> None:
        if not isinstance(error, Refused | VirtvaultError):
            super().log_exception(kind, error, trace)

    def write_error(self, status_code: int, **given: Any) -> None:
        error = given.get("exc_info", (None, None))[1]
        said = error if isinstance(error, Refused) else refused(error, status_code, self.path_args)
        for name, value in said.headers.items():
            self.set_header(name, value)
        self._answer(said.body, said.status)


class Document(Resource):
    """The OpenAPI document: for everybody, since it says nothing of this installation."""

    def _admit(self) -> None:
        if self.request.method != "GET":
            raise Refused(
                405,
                "MethodNotAllowed",
                "This is only to be read.",
                "GET it.",
                headers={"Allow": "GET"},
            )

    async def get(self, path: str = "") -> None:
        self._answer(openapi(self.prefix))
