"""Brings the schema up to date, and tells which version a database has."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

LOCK_TIMEOUT = "5s"
"""A migration that cannot have its lock by then gives up, so that traffic never queues behind it."""

_ONE_AT_A_TIME = 7_243_905_211


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def newest_version() -> str:
    """The version of the schema that this code wants."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def migrate(url: str, version: str = "head") -> str:
    """Bring the database at `url` to a version, the newest unless told; one migration runs at a time.

    Args:
        url: `postgresql+psycopg://…`, as the role that owns the schema.
        version: where to stop.

    Returns:
        The version that the database has now.

    Raises:
        sqlalchemy.exc.DBAPIError: the database cannot be reached, or refuses.
    """
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _ONE_AT_A_TIME})
            connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
            connection.commit()
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, version)
            connection.commit()
            return str(MigrationContext.configure(connection).get_current_revision())
    finally:
        engine.dispose()
