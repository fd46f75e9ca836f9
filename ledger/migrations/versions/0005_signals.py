"""What is compared and counted before a credit: devices, cards, signups on one link."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_SIGNS = """
-- Where the e-mail itself was at hand it was looked at; what it was is not kept.
ALTER TABLE account ADD COLUMN disposable_email boolean NOT NULL DEFAULT false;

-- Keyed hashes of a network and a browser together: of the signup itself, and of what the account was seen with later.
CREATE TABLE device (
    account_id text NOT NULL REFERENCES account,
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    at_signup boolean NOT NULL,
    seen_at timestamptz NOT NULL,
    PRIMARY KEY (account_id, hash, at_signup)
);

-- Whether an invoice was paid with a card of the referrer's, as Stripe answered; no card and no fingerprint.
CREATE TABLE card_check (
    referral_id text NOT NULL REFERENCES referral,
    invoice_id text NOT NULL CHECK (invoice_id <> ''),
    same_card boolean NOT NULL,
    checked_at timestamptz NOT NULL,
    PRIMARY KEY (referral_id, invoice_id)
);

CREATE INDEX referral_by_code ON referral (code, signed_up_at) WHERE signed_up_at IS NOT NULL;
"""

_PRIVILEGES = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'referrals_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON device TO referrals_app;
        GRANT SELECT, INSERT ON card_check TO referrals_app;
    END IF;
END $$;
"""


def upgrade() -> None:
    op.execute(_SIGNS)
    op.execute(_PRIVILEGES)
