"""The end of a serve for people."""

from __future__ import annotations

from virtvault.cli import output
from virtvault.models import ServeResult

__all__ = ["show"]


def show(result: ServeResult) -> None:
    """What was done, point by point."""
    output.document(result)
