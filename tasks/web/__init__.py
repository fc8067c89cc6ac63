"""What Flower's web server serves of ours: the Backups page and the REST API."""

from __future__ import annotations

from typing import Any

from tasks.web import api, page
from virtvault.settings import Settings

__all__ = ["routes"]


def routes(settings: Settings) -> list[Any]:
    """Tornado's routes, to be added to Flower's."""
    return [*page.routes(settings), *api.routes(settings)]
