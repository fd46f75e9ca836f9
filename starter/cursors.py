"""Cursors: where the next page of a list begins, signed, so that they are nobody else's and for no other list."""

from datetime import datetime

from itsdangerous import BadData, URLSafeSerializer

from starter.problems import ProblemError
from starter.services import Services


def of_referrals(account_id: str) -> str:
    """The list of the signups that an account's link brought."""
    return f"referrals {account_id}"


def _signed(services: Services, what: str) -> URLSafeSerializer:
    # Oldest first: the last signs, all verify, as with the tokens.
    secrets = [secret.get_secret_value() for secret in reversed(services.settings.token_secrets)]
    return URLSafeSerializer(secrets, salt=f"cursor-{what}")


def cursor(services: Services, what: str, place: tuple[datetime, str] | None) -> str | None:
    """The cursor of a place in a list; none where the list is at its end."""
    if place is None:
        return None
    return str(_signed(services, what).dumps([place[0].isoformat(), place[1]]))


def place(services: Services, what: str, given: str | None) -> tuple[datetime, str] | None:
    """The place that a cursor of this list stands for.

    Raises:
        ProblemError: 422; it was made for another list, or not here.
    """
    if given is None:
        return None
    try:
        at, last_id = _signed(services, what).loads(given)
        return datetime.fromisoformat(at), str(last_id)
    except (BadData, ValueError, TypeError):
        raise ProblemError(422, "invalid-cursor", "Give next_cursor of the page before, unchanged.") from None
