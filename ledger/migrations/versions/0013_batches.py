"""Batches of operators: what is done to many referrals at once, and how far that is."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE batch (
    batch_id text PRIMARY KEY CHECK (batch_id ~ '^[a-z0-9][a-z0-9-]{0,39}$'),
    action text NOT NULL CHECK (action IN ('retry', 'approve', 'reject', 'void')),
    decided_by text CHECK (length(decided_by) BETWEEN 1 AND 100),
    note text CHECK (length(note) BETWEEN 1 AND 1000),
    wanted jsonb NOT NULL,
    begun_at timestamptz NOT NULL DEFAULT ledger_now(),
    CHECK (action = 'retry' OR (decided_by IS NOT NULL AND note IS NOT NULL))
);

-- Chosen once, when the batch begins; nothing is added and nothing leaves.
CREATE TABLE batch_item (
    batch_id text NOT NULL REFERENCES batch,
    referral_id text NOT NULL REFERENCES referral,
    state text CHECK (state IN ('done', 'refused', 'failed')),
    words text,
    at timestamptz,
    PRIMARY KEY (batch_id, referral_id),
    CHECK ((state IS NULL) = (at IS NULL))
);
"""

_PRIVILEGES = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'referrals_app') THEN
        GRANT SELECT, INSERT ON batch, batch_item TO referrals_app;
        GRANT UPDATE (state, words, at) ON batch_item TO referrals_app;
    END IF;
END $$;
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
    op.execute(_PRIVILEGES)
