"""Flower's own ways to enqueue any task at all, closed where others than this host can reach them.

They ask for Flower's password, and that is all: who has it could enqueue a restore, or a task that
records what never was.
"""

from __future__ import annotations

from typing import Any

from flower.api import BaseApiHandler
from tornado.web import HTTPError, authenticated, url

__all__ = ["routes"]


def routes(prefix: str) -> list[Any]:
    """What stands before Flower's own routes of these paths."""
    return [url(f"{prefix}/api/task/(?:apply|async-apply|send-task)/.+", Closed)]


class Closed(BaseApiHandler):  # type: ignore[misc]
    """Says where to go instead."""

    @authenticated
    def post(self) -> None:
        raise HTTPError(
            403,
            "Flower enqueues tasks only where it listens on loopback: it cannot tell who may do "
            "what. Use the REST API at /v1/ with a token (docs/api.md).",
        )
