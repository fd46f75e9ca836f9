"""Accounts, what Stripe reported, referrals, grants and the journal."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_CLOCK = """
-- The ledger's one clock. Tests move it for their own session with SET referrals.clock_offset = '3 days'.
CREATE FUNCTION ledger_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE AS
$$ SELECT clock_timestamp() + coalesce(nullif(current_setting('referrals.clock_offset', true), ''), '0')::interval $$;
"""

_ACCOUNTS = """
CREATE TABLE account (
    account_id text PRIMARY KEY CHECK (account_id <> ''),
    email_hash bytea,
    first_name text,
    show_first_name boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL,
    erased_at timestamptz,
    invited integer NOT NULL DEFAULT 0 CHECK (invited >= 0),
    subscribed integer NOT NULL DEFAULT 0 CHECK (subscribed >= 0),
    minutes_earned bigint NOT NULL DEFAULT 0 CHECK (minutes_earned >= 0),
    CHECK (erased_at IS NULL OR (email_hash IS NULL AND first_name IS NULL))
) WITH (fillfactor = 80);
CREATE INDEX account_by_email ON account (email_hash) WHERE email_hash IS NOT NULL;

CREATE TABLE identity (
    kind text NOT NULL CHECK (kind IN ('email', 'customer')),
    hash bytea NOT NULL,
    account_id text NOT NULL,
    first_seen_at timestamptz NOT NULL,
    PRIMARY KEY (kind, hash, account_id)
);
CREATE INDEX identity_by_account ON identity (account_id);

CREATE TABLE referral_link (
    code text PRIMARY KEY CHECK (code ~ '^[0-9a-z]{6,32}$'),
    account_id text NOT NULL UNIQUE REFERENCES account,
    created_at timestamptz NOT NULL
);

CREATE TABLE terms_acceptance (
    account_id text NOT NULL REFERENCES account,
    terms_version text NOT NULL CHECK (terms_version <> ''),
    accepted_at timestamptz NOT NULL,
    PRIMARY KEY (account_id, terms_version)
);

CREATE TABLE click_count (
    code text NOT NULL REFERENCES referral_link,
    channel text NOT NULL,
    day date NOT NULL,
    clicks integer NOT NULL CHECK (clicks > 0),
    PRIMARY KEY (code, channel, day)
) WITH (fillfactor = 80);
"""

_STRIPE = """
-- A fact may be known before its account is: Stripe's checkout can be quicker than the backend's call.
CREATE TABLE customer (
    customer_id text PRIMARY KEY CHECK (customer_id <> ''),
    account_id text,
    linked_at timestamptz,
    CHECK ((account_id IS NULL) = (linked_at IS NULL))
);
CREATE INDEX customer_by_account ON customer (account_id) WHERE account_id IS NOT NULL;

CREATE TABLE subscription (
    subscription_id text PRIMARY KEY,
    customer_id text NOT NULL REFERENCES customer,
    ended_at timestamptz NOT NULL
);
CREATE INDEX subscription_by_customer ON subscription (customer_id);

CREATE TABLE seen_period (
    subscription_id text NOT NULL,
    price_id text NOT NULL,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL CHECK (ends_at > starts_at),
    customer_id text NOT NULL REFERENCES customer,
    PRIMARY KEY (subscription_id, price_id, starts_at)
);
CREATE INDEX seen_period_by_customer ON seen_period (customer_id);

CREATE TABLE paid_period (
    invoice_id text PRIMARY KEY,
    customer_id text NOT NULL REFERENCES customer,
    subscription_id text NOT NULL,
    paid_at timestamptz NOT NULL,
    amount_paid bigint NOT NULL CHECK (amount_paid >= 0),
    total bigint NOT NULL,
    lines jsonb NOT NULL CHECK (jsonb_typeof(lines) = 'array')
);
CREATE INDEX paid_period_by_customer ON paid_period (customer_id, paid_at);

CREATE TABLE price (
    price_id text PRIMARY KEY,
    lookup_key text,
    product_id text,
    seen_at timestamptz,
    CHECK ((lookup_key IS NULL) = (seen_at IS NULL))
);

CREATE TABLE invoice_payment (
    invoice_payment_id text PRIMARY KEY,
    invoice_id text NOT NULL,
    payment_intent_id text,
    amount_paid bigint NOT NULL,
    paid_at timestamptz
);
CREATE INDEX invoice_payment_by_intent ON invoice_payment (payment_intent_id);
CREATE INDEX invoice_payment_by_invoice ON invoice_payment (invoice_id);

CREATE TABLE stripe_event (
    event_id text PRIMARY KEY,
    type text NOT NULL,
    created_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    signalled_at timestamptz
);
CREATE INDEX stripe_event_unsignalled ON stripe_event (received_at) WHERE signalled_at IS NULL;
"""

_REFERRALS = """
CREATE TABLE referral (
    referral_id text PRIMARY KEY CHECK (referral_id <> ''),
    code text NOT NULL REFERENCES referral_link,
    channel text NOT NULL,
    referrer_id text NOT NULL REFERENCES account,
    referee_id text NOT NULL REFERENCES account,
    clicked_at timestamptz NOT NULL,
    signup_until timestamptz NOT NULL CHECK (signup_until > clicked_at),
    lapses_at timestamptz NOT NULL CHECK (lapses_at >= signup_until),
    stage text NOT NULL CHECK (stage IN
        ('clicked', 'signed_up', 'in_review', 'credited', 'settled', 'lapsed', 'refused', 'voided')),
    reason text,
    refusal text,
    needs_attention text,
    review_reasons text[] NOT NULL DEFAULT '{}',
    signed_up_at timestamptz,
    plan text,
    bonus_minutes integer CHECK (bonus_minutes > 0),
    qualifying_invoice text,
    credited_at timestamptz,
    -- Rule 22: an end without a bonus says why.
    CHECK (stage NOT IN ('lapsed', 'refused', 'voided') OR reason IS NOT NULL),
    CHECK (stage NOT IN ('signed_up', 'in_review', 'credited', 'settled') OR signed_up_at IS NOT NULL),
    CHECK (stage NOT IN ('credited', 'settled')
        OR (credited_at IS NOT NULL AND plan IS NOT NULL AND bonus_minutes IS NOT NULL)),
    -- Rule 18, the part that one row can tell.
    CHECK (referrer_id <> referee_id OR stage IN ('clicked', 'lapsed', 'refused'))
) WITH (fillfactor = 80);
-- Rule 10: one referral for each account; refused ones do not count.
CREATE UNIQUE INDEX referral_attributed_once ON referral (referee_id)
    WHERE stage IN ('signed_up', 'in_review', 'credited', 'settled', 'voided');
CREATE INDEX referral_by_referee ON referral (referee_id);
CREATE INDEX referral_by_referrer ON referral (referrer_id, signed_up_at DESC, referral_id DESC)
    WHERE signed_up_at IS NOT NULL;

CREATE TABLE referral_event (
    event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    referral_id text NOT NULL REFERENCES referral,
    stage text NOT NULL,
    reason text,
    at timestamptz NOT NULL
);
CREATE INDEX referral_event_by_referral ON referral_event (referral_id, event_id);
"""

_LOTS = """
CREATE TABLE grant_lot (
    grant_id text PRIMARY KEY,
    account_id text NOT NULL REFERENCES account,
    referral_id text NOT NULL REFERENCES referral,
    role text NOT NULL CHECK (role IN ('referrer', 'referee')),
    minutes integer NOT NULL CHECK (minutes > 0),
    remaining integer NOT NULL CHECK (remaining BETWEEN 0 AND minutes),
    credited_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    expired_at timestamptz,
    voided_at timestamptz,
    UNIQUE (referral_id, role),
    -- Rule 7: at most 31 days. Days of 24 hours: no time zone has a say in it.
    CHECK (expires_at > credited_at AND expires_at <= credited_at + interval '744 hours'),
    CHECK (expired_at IS NULL OR expired_at >= expires_at),
    CHECK ((expired_at IS NULL AND voided_at IS NULL) OR remaining = 0)
) WITH (fillfactor = 80);
-- Rule 11: no second bonus for one referee, ever.
CREATE UNIQUE INDEX grant_lot_once_a_referee ON grant_lot (account_id) WHERE role = 'referee';
CREATE INDEX grant_lot_by_account ON grant_lot (account_id, credited_at DESC, grant_id DESC);
CREATE INDEX grant_lot_usable ON grant_lot (account_id, expires_at)
    WHERE expired_at IS NULL AND voided_at IS NULL;
CREATE INDEX grant_lot_due ON grant_lot (expires_at) WHERE expired_at IS NULL AND voided_at IS NULL;

CREATE TABLE entry (
    entry_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    grant_id text NOT NULL REFERENCES grant_lot,
    account_id text NOT NULL REFERENCES account,
    kind text NOT NULL CHECK (kind IN ('credit', 'usage', 'expiry', 'void')),
    delta integer NOT NULL,
    operation_key text NOT NULL CHECK (operation_key <> ''),
    at timestamptz NOT NULL,
    UNIQUE (grant_id, operation_key),
    CHECK (CASE kind WHEN 'credit' THEN delta > 0 WHEN 'usage' THEN delta < 0 ELSE delta <= 0 END)
);
-- A lot is credited once, and is over once.
CREATE UNIQUE INDEX entry_one_credit ON entry (grant_id) WHERE kind = 'credit';
CREATE UNIQUE INDEX entry_one_end ON entry (grant_id) WHERE kind IN ('expiry', 'void');
"""

_GUARDS = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER entry_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON entry
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER referral_event_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON referral_event
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER grant_lot_kept BEFORE DELETE OR TRUNCATE ON grant_lot
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- What a lot was credited with never changes, its end only moves later, and what is gone does not come back.
CREATE FUNCTION guard_lot() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.grant_id, NEW.account_id, NEW.referral_id, NEW.role, NEW.minutes, NEW.credited_at)
        IS DISTINCT FROM (OLD.grant_id, OLD.account_id, OLD.referral_id, OLD.role, OLD.minutes, OLD.credited_at) THEN
        RAISE EXCEPTION 'what grant % was credited with cannot change', OLD.grant_id USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.expires_at < OLD.expires_at THEN
        RAISE EXCEPTION 'the expiry of grant % cannot become earlier (rule 9)', OLD.grant_id
            USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.remaining > OLD.remaining THEN
        RAISE EXCEPTION 'minutes cannot return to grant %', OLD.grant_id USING ERRCODE = 'check_violation';
    END IF;
    IF (OLD.expired_at IS NOT NULL OR OLD.voided_at IS NOT NULL) AND NEW IS DISTINCT FROM OLD THEN
        RAISE EXCEPTION 'grant % is over', OLD.grant_id USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER grant_lot_guard BEFORE UPDATE ON grant_lot FOR EACH ROW EXECUTE FUNCTION guard_lot();

-- Rule 6: at the end of a transaction a referral has both grants, equal, of one moment and its own accounts', or none.
CREATE FUNCTION check_both_sides() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE lots record;
BEGIN
    SELECT count(*) AS number, count(DISTINCT (lot.minutes, lot.credited_at)) AS shapes,
            count(DISTINCT lot.account_id) AS accounts,
            bool_and(lot.account_id = CASE lot.role WHEN 'referrer' THEN ref.referrer_id ELSE ref.referee_id END) AS own
        INTO lots FROM grant_lot lot JOIN referral ref USING (referral_id) WHERE lot.referral_id = NEW.referral_id;
    IF lots.number <> 2 OR lots.shapes <> 1 OR lots.accounts <> 2 OR NOT lots.own THEN
        RAISE EXCEPTION 'referral % must credit both sides, equally and at once (rule 6)', NEW.referral_id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER grant_lot_both_sides AFTER INSERT ON grant_lot DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION check_both_sides();

-- What is left of a lot is what its journal says, at the end of every transaction that touches either.
CREATE FUNCTION check_balance() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE lot grant_lot; total bigint; others integer;
BEGIN
    SELECT * INTO lot FROM grant_lot WHERE grant_id = NEW.grant_id;
    SELECT coalesce(sum(delta), 0), count(*) FILTER (WHERE account_id <> lot.account_id)
        INTO total, others FROM entry WHERE grant_id = NEW.grant_id;
    IF total <> lot.remaining OR others > 0 THEN
        RAISE EXCEPTION 'grant % has % minutes left, its journal says %', NEW.grant_id, lot.remaining, total
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER entry_balance AFTER INSERT ON entry DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION check_balance();
CREATE CONSTRAINT TRIGGER grant_lot_balance AFTER INSERT OR UPDATE OF remaining ON grant_lot
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_balance();
"""

_PRIVILEGES = """
-- The application's role, where the deployment has one apart from the owner, gets what it needs and no more.
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'referrals_app') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO referrals_app', current_schema());
        GRANT SELECT, INSERT, UPDATE ON account, customer, subscription, seen_period, paid_period, price,
            invoice_payment, stripe_event, click_count, referral, grant_lot TO referrals_app;
        GRANT SELECT, INSERT ON identity, referral_link, terms_acceptance, referral_event, entry TO referrals_app;
        GRANT SELECT ON alembic_version TO referrals_app;
    END IF;
END $$;
"""


def upgrade() -> None:
    for statements in (_CLOCK, _ACCOUNTS, _STRIPE, _REFERRALS, _LOTS, _GUARDS, _PRIVILEGES):
        op.execute(statements)
