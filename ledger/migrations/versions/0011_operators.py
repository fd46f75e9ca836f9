"""What operators attribute, when a signup was reported, and lists of referrals by their clicks."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_STATEMENTS = """
-- A signup whose report never came: who vouched for it, and why.
CREATE TABLE attribution (
    referral_id text PRIMARY KEY REFERENCES referral,
    decided_by text NOT NULL CHECK (length(decided_by) BETWEEN 1 AND 100),
    note text NOT NULL CHECK (length(note) BETWEEN 1 AND 1000),
    at timestamptz NOT NULL
);
CREATE TRIGGER attribution_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON attribution
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- In two steps: rows from before stay without, and the table is not rewritten.
ALTER TABLE referral ADD COLUMN reserved_at timestamptz;
ALTER TABLE referral ALTER COLUMN reserved_at SET DEFAULT ledger_now();

CREATE INDEX referral_by_click ON referral (clicked_at, referral_id);
CREATE INDEX referral_by_referrer_and_click ON referral (referrer_id, clicked_at, referral_id);
"""

_PRIVILEGES = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'referrals_app') THEN
        GRANT SELECT, INSERT ON attribution TO referrals_app;
    END IF;
END $$;
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
    op.execute(_PRIVILEGES)
