"""What central answers of policies: apply, list, preview."""

from __future__ import annotations

import redis
from celery import Celery

from tasks.catalog import Catalog
from virtvault.settings import Settings

__all__ = ["register"]


def register(app: Celery, catalog: Catalog, client: redis.Redis, settings: Settings) -> None:
    """Add the tasks."""
