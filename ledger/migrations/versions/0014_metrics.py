"""What the metrics ask of the ledger at every look: each by an index that holds nothing but what waits."""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_STATEMENTS = """
-- When the event that first told of the payment was made, by Stripe's clock; unknown of those from before.
ALTER TABLE paid_period ADD COLUMN told_at timestamptz;

CREATE INDEX referral_undecided ON referral (reserved_at) WHERE stage = 'clicked';
CREATE INDEX referral_needs_attention ON referral (referral_id)
    WHERE stage = 'in_review' OR needs_attention IS NOT NULL OR cardinality(review_reasons) > 0;
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
