"""The end of a verify for people."""

from __future__ import annotations

from virtvault.cli import output
from virtvault.models import VerifyResult

__all__ = ["show"]


def show(result: VerifyResult) -> None:
    """What was done, point by point."""
    output.document(result)
