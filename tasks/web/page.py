"""The Backups page, behind the same authentication as Flower.

It is asked for by many and answered by few: what central or Redis said is kept for a few seconds
and shared by all viewers (:mod:`tasks.web.page_answers`), shaped for the screen
(:mod:`tasks.web.page_data`, :mod:`tasks.web.page_history`) and drawn by the scripts in
``static/``. What runs now is read from Redis alone (:mod:`tasks.web.page_live`), and shows while
central is down.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from virtvault import Client
from virtvault.settings import Settings

__all__ = ["link", "routes"]


def routes(settings: Settings, client: Client | None = None) -> list[Any]:
    """The page, its data and its assets, below Flower's own ``url_prefix``.

    :param client: who is asked; default: one that talks to the broker of ``settings``.
    """
    # Late: Flower's views are there where Flower is, and tests look at a process without it.
    views = import_module("tasks.web.page_views")
    found: list[Any] = views.routes(client or Client(settings))
    return found


def link(server: Any) -> None:
    """Put a link to the page into the navigation of Flower's own pages."""
    import_module("tasks.web.page_assets").link(server)
