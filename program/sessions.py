"""How long a member may look at the dashboard before having to come from KallyAI again."""

from datetime import timedelta

EXCHANGE_WITHIN = timedelta(minutes=5)
"""How long a one-time address of a dashboard can be opened."""

SESSION_LASTS = timedelta(minutes=30)
"""How long the dashboard stays open from then on."""
