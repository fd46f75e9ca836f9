"""The way in: link clicks start workflows, Stripe's webhooks advance them, an HTTP API answers the rest."""
