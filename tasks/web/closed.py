"""What of Flower's is closed where it could be reached by somebody it is not meant for.

Beyond loopback its own ways to enqueue any task at all: they ask for Flower's password, and that is
all, so who has it could enqueue a restore, or a task that records what never was. And its metrics,
which ask for nothing.

On loopback without authentication all of it, for a browser that thinks it talks to another site:
that site's page could make its own name lead here (DNS rebinding), and read the whole fleet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flower.api import BaseApiHandler
from flower.views.monitor import Metrics
from tornado.httputil import HTTPServerRequest
from tornado.routing import Matcher, Rule
from tornado.web import HTTPError, RequestHandler, authenticated, url

__all__ = ["routes", "to_other_names"]


def routes(prefix: str) -> list[Any]:
    """What stands before Flower's own routes of these paths."""
    return [
        url(f"{prefix}/api/task/(?:apply|async-apply|send-task)/.+", Closed),
        url(f"{prefix}/metrics", Counted),
    ]


def to_other_names(prefix: str, ours: Callable[[str], bool]) -> list[Any]:
    """What stands before everything that asks for nothing; the REST API asks for a token.

    :param ours: whether a name or an address is one of this host's own, for itself alone.
    """
    return [Rule(_OtherNames(f"{prefix}/v1/", ours), Misled)]


class Closed(BaseApiHandler):  # type: ignore[misc]
    """Says where to go instead."""

    @authenticated
    def post(self) -> None:
        raise HTTPError(
            403,
            "Flower enqueues tasks only where it listens on loopback: it cannot tell who may do "
            "what. Use the REST API at /v1/ with a token (docs/api.md).",
        )


class Counted(Metrics):  # type: ignore[misc]
    """Flower's metrics, for who may see the rest: they name hypervisors and their tasks."""

    @authenticated
    async def get(self) -> None:
        await super().get()


class _OtherNames(Matcher):
    """Requests to any name but our own, outside of what is below ``free``."""

    def __init__(self, free: str, ours: Callable[[str], bool]) -> None:
        self._free, self._ours = free, ours

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        known = request.path.startswith(self._free) or self._ours(request.host_name.strip("[]"))
        return None if known else {}


class Misled(RequestHandler):
    """Says why, whatever was asked for."""

    def prepare(self) -> None:
        self.set_status(403)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(
            "Flower has no authentication here, so it answers to localhost and 127.0.0.1 alone."
            " Set FLOWER_BASIC_AUTH=user:password where it is to be reached by another name.\n"
        )
