"""What an account can use is known without walking through its bonuses, however many it has."""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_TOTALS = """
-- What is left of an account's bonuses, by the hour in which they end. So what can be used at a moment is the sum of
-- the hours after it, which are at most 745 (rule 7), and of the bonuses that end within this very hour, looked at one
-- by one: exact at every moment, also where a sweep is late. Kept by triggers, like the other totals; an hour with
-- nothing left has no row.
CREATE TABLE expiry_total (
    account_id text NOT NULL REFERENCES account,
    hour timestamptz NOT NULL,
    remaining bigint NOT NULL CHECK (remaining >= 0),
    PRIMARY KEY (account_id, hour)
) WITH (fillfactor = 80);

CREATE FUNCTION expiry_hour(at timestamptz) RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT date_trunc('hour', at, 'UTC') $$;

-- Whoever changes a bonus has its account locked, so two never change one hour at once.
CREATE FUNCTION count_expiry(whose text, at timestamptz, change bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE expiry_total SET remaining = remaining + change WHERE account_id = whose AND hour = at;
    IF NOT FOUND THEN
        INSERT INTO expiry_total VALUES (whose, at, change);
    ELSIF change < 0 THEN
        DELETE FROM expiry_total WHERE account_id = whose AND hour = at AND remaining = 0;
    END IF;
END $$;

CREATE FUNCTION total_new_expiries() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM count_expiry(account_id, hour, change) FROM (
        SELECT account_id, expiry_hour(expires_at) AS hour, sum(remaining) AS change FROM new_rows
        GROUP BY 1, 2 HAVING sum(remaining) > 0 ORDER BY 1, 2) changes;
    RETURN NULL;
END $$;

CREATE FUNCTION total_expiries() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM count_expiry(account_id, hour, change) FROM (
        SELECT account_id, hour, sum(change)::bigint AS change FROM (
            SELECT account_id, expiry_hour(expires_at) AS hour, remaining AS change FROM new_rows
            UNION ALL SELECT account_id, expiry_hour(expires_at), -remaining FROM old_rows) both_rows
        GROUP BY 1, 2 HAVING sum(change) <> 0 ORDER BY 1, 2) changes;
    RETURN NULL;
END $$;

CREATE TRIGGER grant_lot_expiries AFTER UPDATE ON grant_lot
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION total_expiries();
CREATE TRIGGER grant_lot_new_expiries AFTER INSERT ON grant_lot
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION total_new_expiries();

DO $$ DECLARE name text; BEGIN
    FOREACH name IN ARRAY ARRAY['total_new_expiries', 'total_expiries']
    LOOP
        EXECUTE format('ALTER FUNCTION %I() SET search_path = %I, pg_temp', name, current_schema());
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %I() FROM PUBLIC', name);
    END LOOP;
END $$;

-- What there is already is counted while the triggers' locks keep writers out.
INSERT INTO expiry_total (account_id, hour, remaining)
SELECT account_id, expiry_hour(expires_at), sum(remaining) FROM grant_lot WHERE remaining > 0 GROUP BY 1, 2;

-- What is used next, and what ends next, is found at once, however many bonuses are used up and not over yet.
CREATE INDEX grant_lot_left ON grant_lot (account_id, expires_at, grant_id)
    WHERE expired_at IS NULL AND voided_at IS NULL AND remaining > 0;
"""

_PRIVILEGES = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'referrals_app') THEN
        GRANT SELECT ON expiry_total TO referrals_app;
    END IF;
END $$;
"""


def upgrade() -> None:
    op.execute(_TOTALS)
    op.execute(_PRIVILEGES)
