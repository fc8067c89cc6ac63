"""Reading the stream of runs that ended."""

from __future__ import annotations

from collections.abc import Iterator

import redis

from virtvault.models import RunInfo

__all__ = ["read"]


def read(client: redis.Redis, last: int = 50, follow: bool = False) -> Iterator[RunInfo]:
    """See :meth:`virtvault.fleet.Fleet.ends`."""
    raise NotImplementedError
