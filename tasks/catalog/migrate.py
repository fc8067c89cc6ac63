"""Bring a database to this version's tables, with Alembic and without its command line."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from virtvault.errors import InvalidSettings

__all__ = ["upgrade"]


def upgrade(connection: Connection, name: str) -> bool:
    """Migrate within the caller's transaction: all of it, or nothing. Gives whether it had to.

    A database without a version is empty, or was made before there were versions: the first
    migration makes the tables that are not there.

    :raises InvalidSettings: a newer virtvault has migrated the database ``name`` before.
    """
    config = Config()
    where = str(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", where.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    ours = [script.revision for script in scripts.walk_revisions()]
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in ours:
        raise InvalidSettings(
            f"The catalog database {name} has the tables of version {current}; this virtvault"
            f" knows those up to {ours[0]}.",
            "Upgrade virtvault on this host to the newest that has opened it, or restore the"
            " database's dump of before.",
        )
    if current == ours[0]:
        return False
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return True
