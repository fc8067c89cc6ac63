"""Where a catalog can be: SQLite and PostgreSQL, empty for each test."""

import sqlite3
import tempfile
from contextlib import ExitStack, closing

from tasks.catalog import Catalog
from tests.lab.postgres import Postgres

__all__ = ["KINDS", "Stores"]

KINDS = ("sqlite", "postgres")


class Stores:
    """Gives databases, and closes and drops all when closed. PostgreSQL starts at first use."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._server: Postgres | None = None
        self._made: dict[str, str] = {}

    def empty(self, kind: str) -> str:
        """The URL of an empty database."""
        if kind == "postgres":
            return self.server.database()
        directory = self._stack.enter_context(tempfile.TemporaryDirectory())
        return f"sqlite:///{directory}/catalog.sqlite"

    def catalog(self, kind: str) -> Catalog:
        """A catalog without rows: a copy of one that was made once."""
        if kind not in self._made:
            self._made[kind] = self.empty(kind)
            Catalog(self._made[kind]).close()
        made = self._made[kind]
        if kind == "postgres":
            url = self.server.database(_name(made))
        else:
            url = self.empty(kind)
            with closing(sqlite3.connect(_path(made))) as database:
                database.execute("VACUUM INTO ?", (_path(url),))
        return self.open(url)

    def open(self, url: str) -> Catalog:
        """The catalog at a URL."""
        catalog = Catalog(url)
        self._stack.callback(catalog.close)
        return catalog

    @property
    def server(self) -> Postgres:
        """The PostgreSQL server."""
        if self._server is None:
            self._server = self._stack.enter_context(Postgres())
        return self._server

    def close(self) -> None:
        """Drop everything."""
        self._stack.close()


def _path(url: str) -> str:
    return url.removeprefix("sqlite:///")


def _name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]
