"""``virtvault export``."""

from __future__ import annotations

import click

__all__ = ["export"]


@click.command()
def export() -> None:
    """Serve POINT read-only over NBD."""
