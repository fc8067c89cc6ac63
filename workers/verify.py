"""Not written yet."""

from __future__ import annotations

from virtvault.errors import NotSupported
from virtvault.models import VerifyRequest, VerifyResult
from workers.engine import Engine, Ties

__all__ = ["verify"]


def verify(engine: Engine, request: VerifyRequest, ties: Ties) -> VerifyResult:
    """Not written yet."""
    raise NotSupported("Not written yet.", "Wait for it.")
