"""What was given back or is disputed of a payment."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_REVERSALS = """
-- A charge without a payment intent is named by the invoice payment itself.
ALTER TABLE invoice_payment ADD COLUMN charge_id text;
CREATE INDEX invoice_payment_by_charge ON invoice_payment (charge_id) WHERE charge_id IS NOT NULL;

CREATE TABLE refund (
    charge_id text PRIMARY KEY,
    payment_intent_id text,
    amount_refunded bigint NOT NULL CHECK (amount_refunded > 0)
);
CREATE INDEX refund_by_intent ON refund (payment_intent_id) WHERE payment_intent_id IS NOT NULL;

CREATE TABLE dispute (
    dispute_id text PRIMARY KEY,
    charge_id text NOT NULL,
    payment_intent_id text,
    status text NOT NULL CHECK (status <> ''),
    seen_at timestamptz NOT NULL
);
CREATE INDEX dispute_by_intent ON dispute (payment_intent_id) WHERE payment_intent_id IS NOT NULL;
CREATE INDEX dispute_by_charge ON dispute (charge_id);

CREATE INDEX referral_by_invoice ON referral (qualifying_invoice) WHERE qualifying_invoice IS NOT NULL;
"""

_PRIVILEGES = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'referrals_app') THEN
        GRANT SELECT, INSERT, UPDATE ON refund, dispute TO referrals_app;
    END IF;
END $$;
"""


def upgrade() -> None:
    op.execute(_REVERSALS)
    op.execute(_PRIVILEGES)
