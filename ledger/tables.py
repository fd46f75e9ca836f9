"""The tables. Their constraints, triggers and privileges stand in the migrations; this is how queries name them."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

_TIME = DateTime(timezone=True)

account = Table(
    "account",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("email_hash", LargeBinary),
    Column("first_name", Text),
    Column("show_first_name", Boolean),
    Column("created_at", _TIME),
    Column("erased_at", _TIME),
    Column("invited", Integer),
    Column("subscribed", Integer),
    Column("minutes_earned", BigInteger),
    Column("disposable_email", Boolean),
)
"""An account of KallyAI's, with the counts that its dashboard shows (rule 12)."""

identity = Table(
    "identity",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("hash", LargeBinary, primary_key=True),
    Column("account_id", Text, primary_key=True),
    Column("first_seen_at", _TIME),
)
"""Which e-mails and customers belonged to which account, as keyed hashes that outlive the account (rules 10 and 23)."""

device = Table(
    "device",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("hash", LargeBinary, primary_key=True),
    Column("at_signup", Boolean, primary_key=True),
    Column("seen_at", _TIME),
)
"""Networks and browsers that an account was seen with, as keyed hashes of both together (rule 19)."""

referral_link = Table(
    "referral_link",
    metadata,
    Column("code", Text, primary_key=True),
    Column("account_id", Text),
    Column("created_at", _TIME),
)
"""The one link of each referrer (rule 1)."""

terms_acceptance = Table(
    "terms_acceptance",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("terms_version", Text, primary_key=True),
    Column("accepted_at", _TIME),
)
"""Which version of the Program Terms was accepted when (rule 13)."""

click_count = Table(
    "click_count",
    metadata,
    Column("code", Text, primary_key=True),
    Column("channel", Text, primary_key=True),
    Column("day", Date, primary_key=True),
    Column("clicks", Integer),
)
"""Clicks on a link, by channel and UTC day."""

customer = Table(
    "customer",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("account_id", Text),
    Column("linked_at", _TIME),
)
"""A Stripe customer and the account that it belongs to; the first account linked keeps it (rule 18)."""

subscription = Table(
    "subscription",
    metadata,
    Column("subscription_id", Text, primary_key=True),
    Column("customer_id", Text),
    Column("ended_at", _TIME),
)
"""A Stripe subscription that has ended, and when it first was reported to have."""

seen_period = Table(
    "seen_period",
    metadata,
    Column("subscription_id", Text, primary_key=True),
    Column("price_id", Text, primary_key=True),
    Column("starts_at", _TIME, primary_key=True),
    Column("ends_at", _TIME),
    Column("customer_id", Text),
)
"""A billing period seen on a subscription, paid or not; the greatest end wins."""

paid_period = Table(
    "paid_period",
    metadata,
    Column("invoice_id", Text, primary_key=True),
    Column("customer_id", Text),
    Column("subscription_id", Text),
    Column("paid_at", _TIME),
    Column("amount_paid", BigInteger),
    Column("total", BigInteger),
    Column("lines", JSONB),
    Column("told_at", _TIME),
)
"""A paid invoice of a subscription, with the period that each line pays for; `told_at`: when Stripe first told it."""

price = Table(
    "price",
    metadata,
    Column("price_id", Text, primary_key=True),
    Column("lookup_key", Text),
    Column("product_id", Text),
    Column("seen_at", _TIME),
)
"""What is known of a Stripe price; `seen_at` is when its lookup key was."""

invoice_payment = Table(
    "invoice_payment",
    metadata,
    Column("invoice_payment_id", Text, primary_key=True),
    Column("invoice_id", Text),
    Column("payment_intent_id", Text),
    Column("amount_paid", BigInteger),
    Column("paid_at", _TIME),
    Column("charge_id", Text),
)
"""By which payment an invoice was paid: the way from a refund back to its invoice."""

refund = Table(
    "refund",
    metadata,
    Column("charge_id", Text, primary_key=True),
    Column("payment_intent_id", Text),
    Column("amount_refunded", BigInteger),
)
"""How much of a charge was given back, at most; whose it was is known by its invoice alone."""

dispute = Table(
    "dispute",
    metadata,
    Column("dispute_id", Text, primary_key=True),
    Column("charge_id", Text),
    Column("payment_intent_id", Text),
    Column("status", Text),
    Column("seen_at", _TIME),
)
"""How a dispute of a charge stands, and when it was seen to."""

stripe_event = Table(
    "stripe_event",
    metadata,
    Column("event_id", Text, primary_key=True),
    Column("type", Text),
    Column("created_at", _TIME),
    Column("received_at", _TIME),
    Column("signalled_at", _TIME),
    Column("named_prices", ARRAY(Text)),
)
"""Events of Stripe's that were applied, which prices they named, and when every referral concerned had been told."""

webhook_watch = Table(
    "webhook_watch",
    metadata,
    Column("only_row", Boolean, primary_key=True),
    Column("verified_at", _TIME),
    Column("refused_at", _TIME),
    Column("refused", BigInteger),
)
"""When an event of Stripe's last came with a signature that fits, and how many since with none; one row."""

stripe_cursor = Table(
    "stripe_cursor",
    metadata,
    Column("name", Text, primary_key=True),
    Column("read_until", _TIME),
    Column("position", Text),
)
"""How far each walk through what Stripe has is: applied until a time, or until something by its id."""

referral = Table(
    "referral",
    metadata,
    Column("referral_id", Text, primary_key=True),
    Column("code", Text),
    Column("channel", Text),
    Column("referrer_id", Text),
    Column("referee_id", Text),
    Column("clicked_at", _TIME),
    Column("signup_until", _TIME),
    Column("lapses_at", _TIME),
    Column("stage", Text),
    Column("reason", Text),
    Column("refusal", Text),
    Column("needs_attention", Text),
    Column("signed_up_at", _TIME),
    Column("plan", Text),
    Column("bonus_minutes", Integer),
    Column("qualifying_invoice", Text),
    Column("credited_at", _TIME),
    Column("review_reasons", ARRAY(Text)),
    Column("voided_at", _TIME),
    Column("reserved_at", _TIME),
)
"""A referral with a signup; a mere click has no row. `reserved_at` is when the signup was reported."""

attribution = Table(
    "attribution",
    metadata,
    Column("referral_id", Text, primary_key=True),
    Column("decided_by", Text),
    Column("note", Text),
    Column("at", _TIME),
)
"""Referrals of signups whose report never came: which operator vouched for it, and why; append-only (rule 2)."""

batch = Table(
    "batch",
    metadata,
    Column("batch_id", Text, primary_key=True),
    Column("action", Text),
    Column("decided_by", Text),
    Column("note", Text),
    Column("wanted", JSONB),
    Column("begun_at", _TIME),
)
"""What an operator does to many referrals at once: what, who, why, and how these were chosen."""

batch_item = Table(
    "batch_item",
    metadata,
    Column("batch_id", Text, primary_key=True),
    Column("referral_id", Text, primary_key=True),
    Column("state", Text),
    Column("words", Text),
    Column("at", _TIME),
)
"""The referrals of a batch, and what became of each: done, refused, or failed and to be tried again."""

card_check = Table(
    "card_check",
    metadata,
    Column("referral_id", Text, primary_key=True),
    Column("invoice_id", Text, primary_key=True),
    Column("same_card", Boolean),
    Column("checked_at", _TIME),
)
"""Whether an invoice was paid with a card of the referrer's, as Stripe answered (rule 19)."""

review = Table(
    "review",
    metadata,
    Column("referral_id", Text, primary_key=True),
    Column("decision_id", Text, primary_key=True),
    Column("action", Text),
    Column("decided_by", Text),
    Column("note", Text),
    Column("reasons", ARRAY(Text)),
    Column("invoice_id", Text),
    Column("minutes_voided", JSONB),
    Column("at", _TIME),
)
"""Who decided what about a doubtful referral, why, and what was known then; append-only (rules 19 and 20)."""

referral_event = Table(
    "referral_event",
    metadata,
    Column("event_id", BigInteger, primary_key=True),
    Column("referral_id", Text),
    Column("stage", Text),
    Column("reason", Text),
    Column("at", _TIME),
)
"""Every stage of every referral with its reason and time; append-only."""

outbox = Table(
    "outbox",
    metadata,
    Column("message_id", Text, primary_key=True),
    Column("type", Text),
    Column("referral_id", Text),
    Column("account_id", Text),
    Column("data", JSONB),
    Column("created_at", _TIME),
    Column("due_at", _TIME),
)
"""What the backend is told, by an id that follows from what happened."""

delivery = Table(
    "delivery",
    metadata,
    Column("message_id", Text, primary_key=True),
    Column("endpoint", Text, primary_key=True),
    Column("state", Text),
    Column("problem", Text),
    Column("at", _TIME),
)
"""How the delivery of a message to an endpoint ended."""

endpoint_gone = Table(
    "endpoint_gone",
    metadata,
    Column("endpoint", Text, primary_key=True),
    Column("since", _TIME),
)
"""Endpoints that have answered that they want nothing any more."""

grant = Table(
    "grant_lot",
    metadata,
    Column("grant_id", Text, primary_key=True),
    Column("account_id", Text),
    Column("referral_id", Text),
    Column("role", Text),
    Column("minutes", Integer),
    Column("remaining", Integer),
    Column("credited_at", _TIME),
    Column("expires_at", _TIME),
    Column("expired_at", _TIME),
    Column("voided_at", _TIME),
)
"""One lot of bonus minutes."""

entry = Table(
    "entry",
    metadata,
    Column("entry_id", BigInteger, primary_key=True),
    Column("grant_id", Text),
    Column("account_id", Text),
    Column("kind", Text),
    Column("delta", Integer),
    Column("operation_key", Text),
    Column("at", _TIME),
)
"""The journal: every change of a lot, signed, in minutes; append-only."""

operation = Table(
    "operation",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("usage_id", Text, primary_key=True),
    Column("minutes", Integer),
    Column("from_bonus", Integer),
    Column("available", BigInteger),
    Column("at", _TIME),
)
"""A use of minutes, by the backend's id of it: what was asked, and what was answered (rule 21)."""

channel_total = Table(
    "channel_total",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("channel", Text, primary_key=True),
    Column("clicks", BigInteger),
    Column("signups", Integer),
)
"""What each way of sharing a link brought; kept by triggers."""

month_total = Table(
    "month_total",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("month", Date, primary_key=True),
    Column("invited", Integer),
    Column("subscribed", Integer),
    Column("minutes", BigInteger),
)
"""What each month, by its first day (UTC), brought an account (rule 12); kept by triggers."""

expiry_total = Table(
    "expiry_total",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("hour", _TIME, primary_key=True),
    Column("remaining", BigInteger),
)
"""What is left of an account's bonuses by the hour (UTC) in which they end (rule 7); kept by triggers."""

dashboard_version = Table(
    "dashboard_version",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("version", BigInteger),
)
"""Grows with what the dashboard of an account shows; kept by triggers."""

portal_session = Table(
    "portal_session",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),
    Column("account_id", Text),
    Column("exchange_until", _TIME),
    Column("secret_hash", LargeBinary),
    Column("expires_at", _TIME),
)
"""Who may look at a dashboard: hashes of a one-time token, and of the cookie that it was exchanged for."""

ledger_now = func.ledger_now
"""The ledger's clock, UTC. Read it after the account rows are locked."""
