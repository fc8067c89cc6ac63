"""Hypervisors that are gone, put back into a Redis that was flushed.

Those that live tell themselves; of the others only the catalog still knows that they were there,
and that their domains are unreachable and not unknown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

import redis

from virtvault import queues, schemas
from virtvault.models import Inventory

__all__ = ["put_back"]


class Known(Protocol):
    """What of the catalog is needed."""

    def inventories(self) -> Sequence[Inventory]:
        """The newest of each hypervisor."""


def put_back(known: Known, client: redis.Redis) -> None:
    """Once after each flush; what a hypervisor has said itself since then stays.

    :raises redis.RedisError: Redis is away.
    """
    if client.exists(queues.INVENTORY_KEPT_KEY):
        return
    with client.pipeline() as pipe:
        for inventory in known.inventories():
            text = json.dumps(schemas.dump(inventory))
            pipe.set(queues.inventory_key(inventory.host), text, nx=True)
            pipe.hsetnx(queues.HOSTS_KEY, inventory.host, inventory.at)
        pipe.set(queues.INVENTORY_KEPT_KEY, "1")
        pipe.execute()
