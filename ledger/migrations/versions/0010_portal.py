"""What a member's dashboard shows at once, and who may look at it."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_TOTALS = """
-- Kept in the transaction that changes what they count, so that a look at them costs the same with one referral and
-- with a hundred thousand. By triggers: a program of the version before, which still runs while this one is rolled
-- out, counts as well, and nothing that is stored can forget to.
CREATE TABLE channel_total (
    account_id text NOT NULL REFERENCES account,
    channel text NOT NULL,
    clicks bigint NOT NULL DEFAULT 0 CHECK (clicks >= 0),
    signups integer NOT NULL DEFAULT 0 CHECK (signups >= 0),
    PRIMARY KEY (account_id, channel)
) WITH (fillfactor = 80);

CREATE TABLE month_total (
    account_id text NOT NULL REFERENCES account,
    -- The first day of a month, UTC.
    month date NOT NULL CHECK (extract(day FROM month) = 1),
    invited integer NOT NULL DEFAULT 0 CHECK (invited >= 0),
    subscribed integer NOT NULL DEFAULT 0 CHECK (subscribed >= 0),
    minutes bigint NOT NULL DEFAULT 0 CHECK (minutes >= 0),
    PRIMARY KEY (account_id, month)
) WITH (fillfactor = 80);

-- Grows with whatever the dashboard of an account shows. Whoever bumps it has the account locked.
CREATE TABLE dashboard_version (
    account_id text PRIMARY KEY REFERENCES account,
    version bigint NOT NULL DEFAULT 1
) WITH (fillfactor = 80);

-- A channel is whatever an address says: past forty of them an account's further ones are counted together.
CREATE FUNCTION count_channel(whose text, named text, more_clicks bigint, more_signups bigint)
    RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE channel_total SET clicks = clicks + more_clicks, signups = signups + more_signups
        WHERE account_id = whose AND channel = named;
    IF FOUND THEN
        RETURN;
    END IF;
    IF named <> 'other' AND (SELECT count(*) FROM channel_total WHERE account_id = whose) >= 40 THEN
        PERFORM count_channel(whose, 'other', more_clicks, more_signups);
        RETURN;
    END IF;
    INSERT INTO channel_total AS total VALUES (whose, named, more_clicks, more_signups)
        ON CONFLICT (account_id, channel) DO UPDATE
        SET clicks = total.clicks + excluded.clicks, signups = total.signups + excluded.signups;
END $$;

CREATE FUNCTION count_month(
    whose text, at timestamptz, more_invited bigint, more_subscribed bigint, more_minutes bigint)
    RETURNS void LANGUAGE plpgsql AS $$
DECLARE first_day date := date_trunc('month', at AT TIME ZONE 'UTC');
BEGIN
    UPDATE month_total SET invited = invited + more_invited, subscribed = subscribed + more_subscribed,
            minutes = minutes + more_minutes
        WHERE account_id = whose AND month = first_day;
    IF NOT FOUND THEN
        INSERT INTO month_total AS total VALUES (whose, first_day, more_invited, more_subscribed, more_minutes)
            ON CONFLICT (account_id, month) DO UPDATE
            SET invited = total.invited + excluded.invited, subscribed = total.subscribed + excluded.subscribed,
                minutes = total.minutes + excluded.minutes;
    END IF;
END $$;

CREATE FUNCTION dashboard_changed(whose text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO dashboard_version AS known VALUES (whose)
        ON CONFLICT (account_id) DO UPDATE SET version = known.version + 1
$$;

-- Rule 12: what counts as invited.
CREATE FUNCTION counts_as_invited(stage text) RETURNS boolean LANGUAGE sql IMMUTABLE AS
$$ SELECT stage IN ('signed_up', 'in_review', 'credited', 'settled', 'voided') $$;

CREATE FUNCTION total_clicks() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE each record;
BEGIN
    IF TG_OP = 'INSERT' THEN
        FOR each IN SELECT link.account_id, fresh.channel, sum(fresh.clicks) AS clicks
            FROM new_rows fresh JOIN referral_link link USING (code) GROUP BY 1, 2 ORDER BY 1, 2
        LOOP
            PERFORM count_channel(each.account_id, each.channel, each.clicks::bigint, 0);
        END LOOP;
    ELSE
        FOR each IN SELECT link.account_id, fresh.channel, sum(fresh.clicks - stale.clicks) AS clicks
            FROM new_rows fresh JOIN old_rows stale USING (code, channel, day) JOIN referral_link link USING (code)
            GROUP BY 1, 2 ORDER BY 1, 2
        LOOP
            PERFORM count_channel(each.account_id, each.channel, each.clicks::bigint, 0);
        END LOOP;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION total_new_referrals() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE each record;
BEGIN
    -- A click that is only reserved counts for nothing yet.
    FOR each IN SELECT referrer_id, channel, count(*) AS signups FROM new_rows WHERE counts_as_invited(stage)
        GROUP BY 1, 2 ORDER BY 1, 2
    LOOP
        PERFORM count_channel(each.referrer_id, each.channel, 0, each.signups);
    END LOOP;
    FOR each IN SELECT referrer_id, date_trunc('month', at, 'UTC') AS at, sum(invited) AS invited,
            sum(subscribed) AS subscribed
        FROM new_rows, LATERAL (VALUES
            (signed_up_at, counts_as_invited(stage)::integer, 0), (credited_at, 0, 1)) counted (at, invited, subscribed)
        WHERE at IS NOT NULL AND invited + subscribed > 0 GROUP BY 1, 2 ORDER BY 1, 2
    LOOP
        PERFORM count_month(each.referrer_id, each.at, each.invited, each.subscribed, 0);
    END LOOP;
    PERFORM dashboard_changed(referrer_id) FROM (
        SELECT DISTINCT referrer_id FROM new_rows WHERE signed_up_at IS NOT NULL ORDER BY 1) concerned;
    RETURN NULL;
END $$;

CREATE FUNCTION total_referrals() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE each record;
BEGIN
    FOR each IN SELECT fresh.referrer_id, fresh.channel,
            sum(counts_as_invited(fresh.stage)::integer - counts_as_invited(stale.stage)::integer) AS signups
        FROM new_rows fresh JOIN old_rows stale USING (referral_id)
        WHERE counts_as_invited(fresh.stage) <> counts_as_invited(stale.stage) GROUP BY 1, 2 ORDER BY 1, 2
    LOOP
        PERFORM count_channel(each.referrer_id, each.channel, 0, each.signups);
    END LOOP;
    FOR each IN SELECT fresh.referrer_id, date_trunc('month', at, 'UTC') AS at, sum(invited) AS invited,
            sum(subscribed) AS subscribed
        FROM new_rows fresh JOIN old_rows stale USING (referral_id), LATERAL (VALUES
            (coalesce(fresh.signed_up_at, stale.signed_up_at),
                counts_as_invited(fresh.stage)::integer - counts_as_invited(stale.stage)::integer, 0),
            (fresh.credited_at, 0, (stale.credited_at IS NULL)::integer)) counted (at, invited, subscribed)
        WHERE at IS NOT NULL AND (invited <> 0 OR subscribed <> 0) GROUP BY 1, 2 ORDER BY 1, 2
    LOOP
        PERFORM count_month(each.referrer_id, each.at, each.invited, each.subscribed, 0);
    END LOOP;
    -- What is marked for operators after the payment is not shown, and is marked without the referrer's account locked.
    PERFORM dashboard_changed(referrer_id) FROM (
        SELECT DISTINCT fresh.referrer_id FROM new_rows fresh JOIN old_rows stale USING (referral_id)
        WHERE fresh.signed_up_at IS NOT NULL
            AND (fresh.stage, fresh.reason, fresh.plan, fresh.bonus_minutes, fresh.signed_up_at, fresh.credited_at,
                fresh.stage = 'signed_up' AND fresh.needs_attention IS NOT NULL)
            IS DISTINCT FROM
                (stale.stage, stale.reason, stale.plan, stale.bonus_minutes, stale.signed_up_at, stale.credited_at,
                stale.stage = 'signed_up' AND stale.needs_attention IS NOT NULL)
        ORDER BY 1) concerned;
    RETURN NULL;
END $$;

CREATE FUNCTION total_new_grants() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE each record;
BEGIN
    FOR each IN SELECT account_id, date_trunc('month', credited_at, 'UTC') AS at, sum(minutes) AS minutes
        FROM new_rows GROUP BY 1, 2 ORDER BY 1, 2
    LOOP
        PERFORM count_month(each.account_id, each.at, 0, 0, each.minutes);
    END LOOP;
    PERFORM dashboard_changed(account_id) FROM (SELECT DISTINCT account_id FROM new_rows ORDER BY 1) concerned;
    RETURN NULL;
END $$;

CREATE FUNCTION total_grants() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE each record;
BEGIN
    -- Rule 12: credited less voided; what is voided is taken from the month in which it was credited.
    FOR each IN SELECT fresh.account_id, date_trunc('month', fresh.credited_at, 'UTC') AS at,
            sum(fresh.remaining - stale.remaining) AS minutes
        FROM new_rows fresh JOIN old_rows stale USING (grant_id)
        WHERE fresh.voided_at IS NOT NULL AND stale.voided_at IS NULL GROUP BY 1, 2 ORDER BY 1, 2
    LOOP
        PERFORM count_month(each.account_id, each.at, 0, 0, each.minutes);
    END LOOP;
    PERFORM dashboard_changed(account_id) FROM (SELECT DISTINCT account_id FROM new_rows ORDER BY 1) concerned;
    RETURN NULL;
END $$;

CREATE FUNCTION total_links() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM dashboard_changed(account_id) FROM (SELECT account_id FROM new_rows ORDER BY 1) concerned;
    RETURN NULL;
END $$;
"""

_TRIGGERS = """
CREATE TRIGGER click_count_totals AFTER UPDATE ON click_count
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION total_clicks();
CREATE TRIGGER click_count_new_totals AFTER INSERT ON click_count
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION total_clicks();
CREATE TRIGGER referral_totals AFTER UPDATE ON referral
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION total_referrals();
CREATE TRIGGER referral_new_totals AFTER INSERT ON referral
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION total_new_referrals();
CREATE TRIGGER grant_lot_totals AFTER UPDATE ON grant_lot
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION total_grants();
CREATE TRIGGER grant_lot_new_totals AFTER INSERT ON grant_lot
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION total_new_grants();
CREATE TRIGGER referral_link_totals AFTER INSERT ON referral_link
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION total_links();

-- The application cannot write a total: the triggers do, as the owner, and look nowhere but into this schema.
DO $$ DECLARE name text; BEGIN
    FOREACH name IN ARRAY ARRAY['total_clicks', 'total_new_referrals', 'total_referrals', 'total_new_grants',
        'total_grants', 'total_links']
    LOOP
        EXECUTE format('ALTER FUNCTION %I() SET search_path = %I, pg_temp', name, current_schema());
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %I() FROM PUBLIC', name);
    END LOOP;
END $$;
"""

_SO_FAR = """
-- What there is already is counted while the triggers' locks keep writers out.
SELECT count_channel(account_id, channel, sum(clicks)::bigint, sum(signups)::bigint)
FROM (
    SELECT link.account_id, each.channel, each.clicks, 0 AS signups
        FROM click_count each JOIN referral_link link USING (code)
    UNION ALL
    SELECT referrer_id, channel, 0, 1 FROM referral WHERE counts_as_invited(stage)
) counted GROUP BY account_id, channel ORDER BY sum(signups) DESC, sum(clicks) DESC;

INSERT INTO month_total (account_id, month, invited, subscribed, minutes)
SELECT account_id, date_trunc('month', at AT TIME ZONE 'UTC')::date, sum(invited), sum(subscribed), sum(minutes)
FROM (
    SELECT referrer_id AS account_id, signed_up_at AS at, 1 AS invited, 0 AS subscribed, 0 AS minutes
        FROM referral WHERE counts_as_invited(stage) AND signed_up_at IS NOT NULL
    UNION ALL
    SELECT referrer_id, credited_at, 0, 1, 0 FROM referral WHERE credited_at IS NOT NULL
    UNION ALL
    SELECT account_id, credited_at, 0, 0, minutes + coalesce(
        (SELECT sum(delta) FROM entry WHERE entry.grant_id = lot.grant_id AND kind = 'void'), 0) FROM grant_lot lot
) counted GROUP BY 1, 2;
"""

_SESSIONS = """
-- Who may look at a dashboard. Of the one-time token, and of the cookie that it is exchanged for, only hashes are kept.
CREATE TABLE portal_session (
    token_hash bytea PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    account_id text NOT NULL REFERENCES account,
    exchange_until timestamptz NOT NULL,
    secret_hash bytea UNIQUE CHECK (octet_length(secret_hash) = 32),
    expires_at timestamptz,
    CHECK ((secret_hash IS NULL) = (expires_at IS NULL))
);
CREATE INDEX portal_session_by_account ON portal_session (account_id);
CREATE INDEX portal_session_by_age ON portal_session (exchange_until);
"""

_PRIVILEGES = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'referrals_app') THEN
        GRANT SELECT ON channel_total, month_total, dashboard_version TO referrals_app;
        GRANT SELECT, INSERT, DELETE ON portal_session TO referrals_app;
        GRANT UPDATE (secret_hash, expires_at) ON portal_session TO referrals_app;
    END IF;
END $$;
"""


def upgrade() -> None:
    for statements in (_TOTALS, _TRIGGERS, _SO_FAR, _SESSIONS, _PRIVILEGES):
        op.execute(statements)
