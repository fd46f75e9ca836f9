"""When Stripe's events last came with a signature that fits, and how many have come since with none that does."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_STATEMENTS = """
-- A secret that is not the endpoint's can be told by nothing else: what is refused leaves no other trace here.
CREATE TABLE webhook_watch (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    verified_at timestamptz,
    refused_at timestamptz,
    -- Since `verified_at`.
    refused bigint NOT NULL DEFAULT 0 CHECK (refused >= 0)
) WITH (fillfactor = 50);
"""

_PRIVILEGES = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'referrals_app') THEN
        GRANT SELECT, INSERT, UPDATE ON webhook_watch TO referrals_app;
    END IF;
END $$;
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
    op.execute(_PRIVILEGES)
