"""How far Stripe's events were read."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_STATEMENTS = """
-- How far each walk through what Stripe has is: all before `read_until` was applied, at `position` it goes on.
CREATE TABLE stripe_cursor (
    name text PRIMARY KEY CHECK (name <> ''),
    read_until timestamptz,
    position text
);

-- Those that a payment could still bring a bonus, in the order in which reconciliation walks through them.
CREATE INDEX referral_awaiting_payment ON referral (referral_id) WHERE stage IN ('signed_up', 'in_review');
"""

_PRIVILEGES = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'referrals_app') THEN
        GRANT SELECT, INSERT, UPDATE ON stripe_cursor TO referrals_app;
    END IF;
END $$;
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
    op.execute(_PRIVILEGES)
