"""``virtvault verify``."""

from __future__ import annotations

import click

__all__ = ["verify"]


@click.command()
def verify() -> None:
    """Read points back and prove them."""
