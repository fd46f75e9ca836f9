"""What operators decide, and why a referral is held."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_REVIEWS = """
-- A decision is made once: its id is that of the update which brought it.
CREATE TABLE review (
    referral_id text NOT NULL REFERENCES referral,
    decision_id text NOT NULL CHECK (decision_id <> ''),
    action text NOT NULL CHECK (action IN ('approve', 'reject', 'void')),
    decided_by text NOT NULL CHECK (length(decided_by) BETWEEN 1 AND 100),
    note text NOT NULL CHECK (length(note) BETWEEN 1 AND 1000),
    -- What the operator knew of: why it was doubtful, and which invoice it was about.
    reasons text[] NOT NULL,
    invoice_id text,
    minutes_voided jsonb NOT NULL DEFAULT '{}',
    at timestamptz NOT NULL,
    PRIMARY KEY (referral_id, decision_id)
);
CREATE TRIGGER review_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON review
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

ALTER TABLE referral ADD COLUMN voided_at timestamptz;
-- Rule 19: what is held says why, and for which payment.
ALTER TABLE referral ADD CONSTRAINT referral_held_says_why
    CHECK (stage <> 'in_review' OR (cardinality(review_reasons) > 0 AND qualifying_invoice IS NOT NULL)) NOT VALID;
ALTER TABLE referral VALIDATE CONSTRAINT referral_held_says_why;
"""

_PRIVILEGES = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'referrals_app') THEN
        GRANT SELECT, INSERT ON review TO referrals_app;
    END IF;
END $$;
"""


def upgrade() -> None:
    op.execute(_REVIEWS)
    op.execute(_PRIVILEGES)
