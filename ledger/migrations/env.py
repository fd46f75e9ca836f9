"""Runs the migrations on the connection that `ledger.migrate` hands over."""

from alembic import context

with context.begin_transaction():
    context.configure(connection=context.config.attributes["connection"])
    context.run_migrations()
