"""The catalog's database: opened, brought to this version's tables, read and written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.orm import Session

from tasks.catalog import migrate
from virtvault.errors import InvalidSettings, NotReachable, WorkFailed

__all__ = ["Database"]

# PostgreSQL's advisory lock of whoever writes to the catalog: "vv" and its number, nobody else's.
LOCK = 0x7676_0001
# Milliseconds that SQLite waits for a writer in another process.
BUSY_TIMEOUT = 30_000
# Rows asked for at a time where keys are listed: SQLite takes 32 766 parameters.
CHUNK = 1000


class Database:
    """The database at ``url``, with this version's tables.

    :raises InvalidSettings: it cannot be used as it is: URL, rights, or a newer virtvault's tables.
    :raises NotReachable: it does not answer.
    """

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        self._writer = self._engine.execution_options(writing=True)
        self.name = self._engine.url.render_as_string(hide_password=True)
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _migrate(self) -> None:
        with self._reachable(opening=True), self._writer.begin() as connection:
            # Who starts at the same time waits, and finds nothing left to do.
            _lock(connection)
            if migrate.upgrade(connection, self.name):
                with Session(connection) as session:
                    self._derive(session)
                    session.flush()

    def _derive(self, session: Session) -> None:
        """Make derived tables anew, after a migration."""

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with self._reachable(), Session(self._engine) as session:
            yield session

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        """Writers come one after another: what is recorded depends on what is there."""
        with self._reachable(), Session(self._writer) as session, session.begin():
            _lock(session.connection())
            yield session

    @contextmanager
    def _reachable(self, opening: bool = False) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            said = str(error.orig).strip().splitlines()[0].rstrip(".")
            raise _mended(self.name, said, error, opening) from error


def _engine(url: str) -> Engine:
    try:
        made = make_url(url)
    except ArgumentError as error:
        raise InvalidSettings(
            "catalog_url is no database URL.",
            "Write it as sqlite:////PATH or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE.",
        ) from error
    if made.get_backend_name() not in ("sqlite", "postgresql"):
        raise InvalidSettings(
            f"catalog_url: the catalog cannot be in {made.drivername}.",
            "Use sqlite:////PATH or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE.",
        )
    try:
        engine = create_engine(made, pool_pre_ping=True)
    except (NoSuchModuleError, ImportError) as error:
        raise InvalidSettings(
            f"catalog_url: no driver for {made.drivername}: {error}.",
            "Use postgresql+psycopg://…; it comes with `pip install 'virtvault[central]'`.",
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _record: Any) -> None:
    # Transactions are begun by us alone: Python's module would leave reads and DDL outside them.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT}")
    # Readers do not wait for the writer.
    connection.execute("PRAGMA journal_mode=WAL")


def _begin(connection: Connection) -> None:
    # A writer that had read first, and then found another's write, would be refused.
    writing = connection.get_execution_options().get("writing")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _lock(connection: Connection) -> None:
    """Wait for the writer before us; SQLite's transaction has done so as it began."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})


def _mended(
    name: str, said: str, error: DBAPIError, opening: bool
) -> NotReachable | InvalidSettings | WorkFailed:
    kind = type(error).__name__
    if kind in ("OperationalError", "InterfaceError", "InternalError"):
        return NotReachable(
            f"The catalog database {name} does not answer: {said}.",
            "Start the database, or mend catalog_url.",
        )
    if opening:
        return InvalidSettings(
            f"The catalog database {name} cannot be used: {said}.",
            "See docs/catalog.md for the rights that it needs, or mend catalog_url.",
        )
    return WorkFailed(
        f"The catalog database {name} refused: {said}.", "The central worker's log has more."
    )
