"""Telling other services that a run has ended: a bounded stream in Redis.

It is written after the catalog has the run, before the record's task succeeds: where Redis or
central goes away in between, the hypervisor's spool tells it again. So an end may be told twice,
and is never left out while Redis is there.
"""

from __future__ import annotations

import json

import redis

from virtvault import queues, schemas
from virtvault.models import RunInfo

__all__ = ["tell"]

# Ends kept: a night of a large fleet.
KEPT = 20_000


def tell(client: redis.Redis, run: RunInfo) -> None:
    """Add the end of a run to the stream.

    :raises redis.RedisError: it was not told; the record is to be sent again.
    """
    entry = {"run": json.dumps(schemas.dump(run))}
    client.xadd(queues.ENDS_STREAM, entry, maxlen=KEPT, approximate=True)  # type: ignore[arg-type]
