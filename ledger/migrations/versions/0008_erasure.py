"""A customer can be renamed, and what Stripe told of it follows (rule 23)."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TABLES = ("subscription", "seen_period", "paid_period")


def upgrade() -> None:
    for table in _TABLES:
        constraint = f"{table}_customer_id_fkey"
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")
        op.execute(
            f"ALTER TABLE {table} ADD CONSTRAINT {constraint} FOREIGN KEY (customer_id) REFERENCES customer"
            " ON UPDATE CASCADE NOT VALID"
        )
        op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {constraint}")
