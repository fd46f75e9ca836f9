"""The steps of a referral, carried out on the ledger."""
