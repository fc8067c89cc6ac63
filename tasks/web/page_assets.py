"""The Backups page's files, and its link in the navigation of Flower's own pages."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

from flower.views import BaseHandler
from tornado.template import Loader, Template
from tornado.web import HTTPError, authenticated

__all__ = ["Asset", "View", "assets", "link"]

# Nothing from elsewhere, nothing inline, and no text is ever taken for markup.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


def link(server: Any) -> None:
    """Put a link to the page into the navigation of Flower's own pages."""
    server.settings["template_loader"] = _Linked(server.settings["template_path"])


class _Linked(Loader):
    """Flower's templates, with one entry more in the navigation."""

    _entry = (
        '<li class="nav-item"><a class="nav-link" href="{{ reverse_url(\'backups\') }}">'
        "Backups</a></li>\n      </ul>"
    )

    def _create_template(self, name: str) -> Template:
        if name != "navbar.html":
            return super()._create_template(name)
        # A navigation that is built otherwise stays as it is: the page has its address anyway.
        text = Path(self.root, name).read_text()
        text = re.sub(r"</ul>", lambda _: self._entry, text, count=1)
        return Template(text, name=name, loader=self)


class View(BaseHandler):  # type: ignore[misc]
    """What all of the page's answers have in common."""

    def set_default_headers(self) -> None:
        super().set_default_headers()
        for name, value in HEADERS.items():
            self.set_header(name, value)


class Asset(View):
    """The page itself, its style and its scripts."""

    def initialize(self, files: dict[str, tuple[str, bytes]], name: str = "") -> None:
        self._files, self._name = files, name

    @authenticated
    def get(self, name: str = "") -> None:
        found = self._files.get(name or self._name)
        if found is None:
            raise HTTPError(404)
        self.set_header("Content-Type", found[0])
        # Asked for each time, sent again when it has changed: no viewer is left with old scripts.
        self.set_header("Cache-Control", "no-cache")
        self.finish(found[1])


def assets() -> dict[str, tuple[str, bytes]]:
    """The assets by name: content type and content."""
    found = {}
    for file in resources.files("tasks.web").joinpath("static").iterdir():
        kind = TYPES.get(Path(file.name).suffix)
        if kind:
            found[file.name] = (f"{kind}; charset=utf-8", file.read_bytes())
    return found
