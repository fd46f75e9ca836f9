"""How pages are made: templates, the reader's way of writing numbers and times, and what a browser may do with them."""

import gzip
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from babel import Locale, UnknownLocaleError
from babel.dates import format_date, format_datetime
from babel.numbers import format_currency, format_decimal, format_percent
from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from program.cycles import LONGEST_BONUS, RENEWAL_GRACE
from program.plans import BONUS_SHARE, Plans
from program.referral import CLICK_TOLERANCE, REPEATED_CLICK, Role, Stage
from program.terms import TERMS_VERSION
from runtime.settings import StarterSettings
from starter import invitation_image
from starter.assets import Assets
from starter.preferences import preferences, takes_gzip

TEMPLATES = Path(__file__).parent / "templates"

NO_STORE = "no-store"

SECURITY_HEADERS: Mapping[str, str] = {
    # Nothing from elsewhere, nothing inline, and no frame around it.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

_DEFAULT_LOCALE = Locale.parse("en_US")


def reader_locale(accept_language: str) -> Locale:
    """How the reader writes numbers, by the browser's word; the words of the pages are English."""
    for tag in preferences(accept_language):
        try:
            return Locale.parse(tag, sep="-")
        except (ValueError, UnknownLocaleError):
            continue
    return _DEFAULT_LOCALE


class Site:
    """Makes the pages. A template that asks for what it was not given fails, rather than showing nothing."""

    def __init__(self, settings: StarterSettings, plans: Plans, assets: Assets | None = None) -> None:
        """Take what every page may refer to."""
        self.assets = assets or Assets()
        self.assets.add_later(invitation_image.NAME, lambda: invitation_image.draw(plans))
        self._environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self._environment.globals |= {
            "asset": self.assets.path,
            "plans": tuple(plans),
            "public_url": settings.public_url,
            "signup_url": settings.signup_url,
            "account_url": settings.account_url or settings.signup_url,
            "terms_version": TERMS_VERSION,
            "Role": Role,
            "Stage": Stage,
            "bonus_share": BONUS_SHARE,
            "longest_bonus": LONGEST_BONUS,
            "renewal_grace": RENEWAL_GRACE,
            "click_tolerance": CLICK_TOLERANCE,
            "repeated_click": REPEATED_CLICK,
            "attribution_window": settings.attribution_window,
            "invitation_image": invitation_image.NAME,
            "invitation_image_size": (invitation_image.WIDTH, invitation_image.HEIGHT),
            "invitation_image_text": invitation_image.alternative(plans),
        }

    def render(self, template: str, locale: Locale = _DEFAULT_LOCALE, **values: Any) -> str:
        """The text of a page, or of a part of one.

        Args:
            template: a file of `templates/`.
            locale: how numbers are written.
            values: what the template shows.
        """
        return self._environment.get_template(template).render(
            number=lambda value: format_decimal(value, locale=locale),
            percent=lambda share: _percent(share, locale),
            dollars=lambda cents: _dollars(cents, locale),
            span=lambda length: _span(length, locale),
            moment=lambda at: _moment(at, locale),
            day=lambda at: format_date(at, "medium", locale=locale),
            **values,
        )

    def page(
        self,
        request: Request,
        template: str,
        status: int = 200,
        *,
        cache: str = NO_STORE,
        headers: Mapping[str, str] | None = None,
        **values: Any,
    ) -> HTMLResponse:
        """A page as an answer, compressed where the browser takes that.

        Args:
            request: whose answer it is; says how the reader writes numbers.
            template: a file of `templates/`.
            status: of the answer.
            cache: its Cache-Control.
            headers: more of them.
            values: what the template shows.
        """
        locale = reader_locale(request.headers.get("accept-language", ""))
        body = self.render(template, locale, **values).encode()
        sent = {**SECURITY_HEADERS, "Cache-Control": cache, "Vary": "Accept-Encoding, Accept-Language"}
        if takes_gzip(request.headers.get("accept-encoding", "")):
            body = gzip.compress(body, compresslevel=6)
            sent["Content-Encoding"] = "gzip"
        return HTMLResponse(body, status, {**sent, **(headers or {})})


def _dollars(cents: int, locale: Locale) -> str:
    """A price; whole dollars without the cents that are none."""
    pattern: str = locale.currency_formats["standard"].pattern
    if not cents % 100:
        pattern = pattern.replace("0.00", "0")
    return format_currency(Decimal(cents) / 100, "USD", pattern, locale, currency_digits=False)


def _percent(share: Fraction, locale: Locale) -> str:
    """A share, with as many decimals as it has."""
    exact = Decimal(share.numerator) / Decimal(share.denominator)
    return format_percent(exact, locale=locale, decimal_quantization=False)


def _span(length: timedelta, locale: Locale) -> str:
    """A length of time in the largest unit, of days and less, that it is a whole number of."""
    units = (("day", timedelta(days=1)), ("hour", timedelta(hours=1)), ("minute", timedelta(minutes=1)))
    unit, one = next(((unit, one) for unit, one in units if not length % one), ("second", timedelta(seconds=1)))
    count = length // one
    return f"{format_decimal(count, locale=locale)} {unit}{'' if count == 1 else 's'}"


def _moment(at: datetime, locale: Locale) -> str:
    """A time as it is shown where no script turns it into the reader's own zone."""
    return f"{format_datetime(at, 'd MMM y, HH:mm', locale=locale)} UTC"
