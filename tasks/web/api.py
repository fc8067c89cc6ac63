"""The REST API: submit, look, wait, cancel; bearer tokens with roles. docs/api.md is its page.

What it does is in :mod:`tasks.web.api_operations`, how it is spoken in
:mod:`tasks.web.api_resource`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from virtvault.settings import Settings

__all__ = ["routes"]


def routes(settings: Settings) -> list[Any]:
    """The API's resources, below Flower's own ``url_prefix``."""
    # Late: Flower, and Tornado with it, is only where the central tier is.
    resource = import_module("tasks.web.api_resource")
    found: list[Any] = resource.routes(settings)
    return found
