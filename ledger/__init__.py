"""The ledger in PostgreSQL: accounts, what Stripe reported, referrals, grants and the journal of every minute."""
