"""Not written yet."""

from __future__ import annotations

from virtvault.errors import NotSupported
from virtvault.models import PruneRequest, PruneResult
from workers.engine import Engine, Ties

__all__ = ["prune"]


def prune(engine: Engine, request: PruneRequest, ties: Ties) -> PruneResult:
    """Not written yet."""
    raise NotSupported("Not written yet.", "Wait for it.")
