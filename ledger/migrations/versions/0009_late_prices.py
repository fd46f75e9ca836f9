"""Who has a price is found by the price, and an event remembers which prices it named."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE INDEX seen_period_by_price ON seen_period (price_id, customer_id);
CREATE INDEX paid_period_by_price ON paid_period
    USING gin (jsonb_path_query_array(lines, '$[*].price') jsonb_path_ops);
ALTER TABLE stripe_event ADD COLUMN named_prices text[] NOT NULL DEFAULT '{}';
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
