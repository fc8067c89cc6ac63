"""``virtvault catalog``, ``protect`` and ``unprotect``."""

from __future__ import annotations

import click

__all__ = ["catalog"]


@click.group()
def catalog() -> None:
    """The central index of all points."""
