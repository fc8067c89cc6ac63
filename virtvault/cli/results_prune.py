"""The end of a prune for people."""

from __future__ import annotations

from virtvault.cli import output
from virtvault.models import PruneResult

__all__ = ["show"]


def show(result: PruneResult) -> None:
    """What was done, point by point."""
    output.document(result)
