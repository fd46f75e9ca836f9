"""Stripe's events, reduced to facts that commute and can be applied any number of times."""
