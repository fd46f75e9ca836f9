"""Uses of minutes, each once."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_OPERATIONS = """
CREATE TABLE operation (
    account_id text NOT NULL REFERENCES account,
    usage_id text NOT NULL CHECK (usage_id <> ''),
    minutes integer NOT NULL CHECK (minutes > 0),
    from_bonus integer NOT NULL CHECK (from_bonus BETWEEN 0 AND minutes),
    available bigint NOT NULL CHECK (available >= 0),
    at timestamptz NOT NULL,
    PRIMARY KEY (account_id, usage_id)
);
CREATE TRIGGER operation_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON operation
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'referrals_app') THEN
        GRANT SELECT, INSERT ON operation TO referrals_app;
    END IF;
END $$;
"""


def upgrade() -> None:
    op.execute(_OPERATIONS)
