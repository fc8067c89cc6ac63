"""Not written yet."""

from __future__ import annotations

from virtvault.errors import NotSupported
from virtvault.models import ServeRequest, ServeResult
from workers.engine import Engine, Ties

__all__ = ["serve"]


def serve(engine: Engine, request: ServeRequest, ties: Ties) -> ServeResult:
    """Not written yet."""
    raise NotSupported("Not written yet.", "Wait for it.")
