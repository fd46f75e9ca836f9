"""The console script `referrals`."""
