"""Celery's Redis result backend without its subscriptions."""

from __future__ import annotations

from typing import Any

from celery.backends.redis import RedisBackend

__all__ = ["PolledRedisBackend"]


class PolledRedisBackend(RedisBackend):  # type: ignore[misc]
    """Results are polled here, so sending a task need not subscribe to its result.

    The subscription is also what makes *sending* try for 20 s and then end in a RuntimeError when
    Redis is away; without it the broker's own error comes at once.
    """

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Subscribe to nothing."""
