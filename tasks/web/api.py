"""The REST API: submit, look, wait, cancel; bearer tokens with roles."""

from __future__ import annotations

from typing import Any

from virtvault.settings import Settings

__all__ = ["routes"]


def routes(settings: Settings) -> list[Any]:
    """The API's resources."""
    return []
