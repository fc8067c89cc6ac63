"""The Backups page, behind the same authentication as Flower."""

from __future__ import annotations

from typing import Any

from virtvault.settings import Settings

__all__ = ["routes"]


def routes(settings: Settings) -> list[Any]:
    """The page, its data and its assets."""
    return []
