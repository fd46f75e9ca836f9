"""Signed link tokens: one click, carried by the visitor until the signup."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from itsdangerous import BadData, URLSafeSerializer

from ledger.referrals import ClickedLink
from program.referral import AttributionWindow

_SALT = "referral-token"


class InvalidTokenError(Exception):
    """The token was not signed here, or with none of the secrets in use."""


class Tokens:
    """Makes and reads tokens. Of several secrets the first signs, and all verify, so that they can be rotated."""

    def __init__(self, secrets: Sequence[str], window: timedelta) -> None:
        """Take the secrets (`REFERRALS_TOKEN_SECRETS`), and for how long a click counts."""
        self._serializer = URLSafeSerializer(
            list(reversed(secrets)),
            salt=_SALT,
            signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"},
        )
        self._window = window

    def sign(self, click: ClickedLink) -> str:
        """The token of a click; the time is kept to the second."""
        clicked_at = int(click.window.clicked_at.timestamp())
        return str(self._serializer.dumps([click.referral_id, click.code, clicked_at, click.channel]))

    def read(self, token: str) -> ClickedLink:
        """The click that a token tells of. How old it is, is for others to judge.

        Raises:
            InvalidTokenError: it is forged, damaged, or signed with a secret that is no longer in use.
        """
        try:
            referral_id, code, clicked_at, channel = self._serializer.loads(token)
            window = AttributionWindow(datetime.fromtimestamp(clicked_at, UTC), self._window)
        except (BadData, ValueError, TypeError, OverflowError) as error:
            raise InvalidTokenError from error
        return ClickedLink(referral_id, code, channel, window)
