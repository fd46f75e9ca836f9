"""The embedded stack behind `referrals dev`: real PostgreSQL and Temporal servers, worker, starter, one supervisor.

Only a composition: everything in here starts programs that also run on their own.
"""
