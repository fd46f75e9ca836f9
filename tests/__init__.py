"""The tests: real Temporal servers, real PostgreSQL, really signed Stripe events."""
