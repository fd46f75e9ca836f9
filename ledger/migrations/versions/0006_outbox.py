"""What the backend is told."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_OUTBOX = """
CREATE TABLE outbox (
    message_id text PRIMARY KEY CHECK (message_id ~ '^msg_[0-9a-f]{32}$'),
    type text NOT NULL CHECK (type IN ('referral.signed_up', 'referral.refused', 'referral.in_review',
        'bonus.credited', 'bonus.expiring', 'bonus.expired', 'bonus.voided')),
    referral_id text NOT NULL REFERENCES referral,
    account_id text REFERENCES account,
    data jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    -- When the sweep looks whether somebody delivers it; none once that is over.
    due_at timestamptz
);
CREATE INDEX outbox_due ON outbox (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX outbox_by_age ON outbox (created_at);
CREATE INDEX outbox_by_referral ON outbox (referral_id);
CREATE INDEX outbox_by_account ON outbox (account_id) WHERE account_id IS NOT NULL;

-- How the delivery to each endpoint ended; none while it is under way.
CREATE TABLE delivery (
    message_id text NOT NULL REFERENCES outbox ON DELETE CASCADE,
    endpoint text NOT NULL CHECK (endpoint <> ''),
    state text NOT NULL CHECK (state IN ('delivered', 'given_up')),
    problem text CHECK ((state = 'given_up') = (problem IS NOT NULL)),
    at timestamptz NOT NULL,
    PRIMARY KEY (message_id, endpoint)
);

-- Endpoints that have answered 410 Gone.
CREATE TABLE endpoint_gone (
    endpoint text PRIMARY KEY,
    since timestamptz NOT NULL
);
"""

_PRIVILEGES = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'referrals_app') THEN
        GRANT SELECT, INSERT, DELETE ON outbox TO referrals_app;
        GRANT UPDATE (due_at) ON outbox TO referrals_app;
        GRANT SELECT, INSERT, UPDATE ON delivery TO referrals_app;
        GRANT SELECT, INSERT, DELETE ON endpoint_gone TO referrals_app;
    END IF;
END $$;
"""


def upgrade() -> None:
    op.execute(_OUTBOX)
    op.execute(_PRIVILEGES)
