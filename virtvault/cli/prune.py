"""``virtvault prune``."""

from __future__ import annotations

import click

__all__ = ["prune"]


@click.command()
def prune() -> None:
    """Remove points that no rule keeps."""
