"""What comes in and goes out over HTTP. Times are UTC in ISO 8601; minutes are whole."""

import re
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Literal

from email_validator import EmailNotValidError, validate_email
from fastapi import Path, Query
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from program.identity import ACCOUNT_ID_PATTERN, network_of, normalise_email
from program.referral import Role, Stage

AccountIdText = Annotated[str, StringConstraints(pattern=ACCOUNT_ID_PATTERN)]
AccountId = Annotated[
    str, Path(pattern=ACCOUNT_ID_PATTERN, description="The backend's opaque id of the account; never personal data.")
]
ReferralId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,128}$", description="The id of a referral.")]


def _email(value: str) -> str:
    try:
        # Whether mail can be delivered there is not this program's business; whose it is, is.
        validate_email(value, check_deliverability=False, allow_smtputf8=True, test_environment=True)
        # The two do not agree on every domain of other scripts.
        normalise_email(value)
    except (EmailNotValidError, ValueError):
        raise ValueError("must be an e-mail address") from None
    return value


def _ip(value: str) -> str:
    try:
        network_of(value)
    except ValueError:
        raise ValueError("must be an IPv4 or IPv6 address") from None
    return value


def _printable(value: str) -> str:
    if any(unicodedata.category(character)[0] == "C" for character in value):
        raise ValueError("must have no control characters")
    return value


EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


def _sensible(value: datetime) -> datetime:
    # A time that was never set, in whatever language the caller is written, would make every account an old one.
    if value < EARLIEST:
        raise ValueError(f"must not lie before {EARLIEST.year}")
    return value


CreatedAt = Annotated[AwareDatetime, AfterValidator(_sensible)]
Email = Annotated[
    str,
    StringConstraints(max_length=320, strip_whitespace=True),
    AfterValidator(_email),
    Field(json_schema_extra={"format": "email"}),
]
FirstName = Annotated[
    str, StringConstraints(min_length=1, max_length=80, strip_whitespace=True), AfterValidator(_printable)
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class SeenWith(_Request):
    """Where a request of the person's own came from, as the backend saw it; of both only a keyed hash is ever kept."""

    client_ip: Annotated[str, StringConstraints(max_length=64), AfterValidator(_ip)] | None = None
    user_agent: Annotated[str, StringConstraints(max_length=1024)] | None = None


class AccountPut(SeenWith):
    """An account, as the backend knows it. Saying it again changes nothing."""

    email: Email
    created_at: CreatedAt
    stripe_customer_id: Annotated[str, StringConstraints(pattern=r"^cus_[A-Za-z0-9_]+$", max_length=255)] | None = None
    first_name: FirstName | None = None
    show_first_name: bool | None = None


class Cycle(BaseModel):
    """A paid billing period, from `start` up to, but without, `end`."""

    start: datetime
    end: datetime


class AccountStanding(BaseModel):
    """How an account stands: whether it counts as a paid subscriber, its plan, and the paid period it is in."""

    account_id: str
    paid: bool
    plan: str | None
    cycle: Cycle | None


class LinkRequest(SeenWith):
    """Which version of the Program Terms the member accepts by taking the link (rule 13)."""

    terms_version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$", max_length=64)]


class PortalSession(BaseModel):
    """Where a member finds the dashboard: to be opened once, until `expires_at`."""

    url: str
    expires_at: datetime


class Link(BaseModel):
    """A member's own link, always the same (rule 1)."""

    code: str
    url: str


class SignupRequest(SeenWith):
    """A friend's signup, with the token of the link that was followed or the code that was given."""

    account_id: AccountIdText
    email: Email
    created_at: CreatedAt
    referral_token: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    referral_code: (
        Annotated[
            str, StringConstraints(min_length=1, max_length=64, strip_whitespace=True), AfterValidator(_printable)
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _one_way(self) -> "SignupRequest":
        if (self.referral_token is None) == (self.referral_code is None):
            raise ValueError("give referral_token or referral_code, one of them")
        return self


class SignupAccepted(BaseModel):
    """The referral that the signup belongs to; the same one for the same account and token."""

    referral_id: str


class Expiries(BaseModel):
    """Until when each side can use its bonus."""

    referrer: datetime | None = None
    referee: datetime | None = None


class ReferralShown(BaseModel):
    """A referral. Of a mere click only what is known of it."""

    referral_id: str
    stage: Stage
    reason: str | None = None
    referrer_account_id: str
    referee_account_id: str | None = None
    plan: str | None = None
    bonus_minutes: int | None = None
    needs_attention: bool = False
    attention: str | None = None
    review_reasons: list[str] = []
    clicked_at: datetime
    signed_up_at: datetime | None = None
    credited_at: datetime | None = None
    expires_at: Expiries = Expiries()


class ReferralPage(BaseModel):
    """Referrals with a signup, the newest first. `next_cursor` is where the next page begins, if there is one."""

    referrals: list[ReferralShown]
    next_cursor: str | None


class Summary(BaseModel):
    """The numbers of a member's dashboard (rule 12); bonus minutes in either role."""

    clicks: int
    invited: int
    subscribed: int
    bonus_minutes_earned: int
    bonus_minutes_available: int
    next_expiry: datetime | None


class Grant(BaseModel):
    """One lot of bonus minutes: credited, left, and expired unused."""

    grant_id: str
    referral_id: str
    role: Role
    minutes: int
    remaining: int
    expired: int
    credited_at: datetime
    expires_at: datetime
    state: Literal["active", "used", "expired", "void"]


class BonusMinutes(BaseModel):
    """What can be used now, and the grants, the newest first, page by page."""

    available: int
    grants: list[Grant]
    next_cursor: str | None = None


class UsageRequest(_Request):
    """Whole minutes that were used, at least one, under the backend's own id of that use."""

    usage_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]+$", max_length=200)]
    minutes: Annotated[int, Field(strict=True, ge=1, le=1_000_000)]


class UsageAnswer(BaseModel):
    """Where the minutes came from, and what was left of the bonus when they were recorded."""

    usage_id: str
    from_bonus: int
    from_plan: int
    available: int


class WebhookAnswer(BaseModel):
    """Whether the event said something here."""

    handled: bool


class Readiness(BaseModel):
    """What the program depends on, and whether each is there."""

    postgres: bool
    schema_current: bool
    temporal: bool


PageLimit = Annotated[int, Query(ge=1, le=1000, description="How many at most.")]
Cursor = Annotated[str | None, Query(max_length=512, description="`next_cursor` of the page before.")]


def channel_of(given: str | None) -> str:
    """The channel that a link was shared by: `link` where none is named, `other` for what is no short plain word."""
    if not given:
        return "link"
    channel = given.strip().lower()
    return channel if re.fullmatch(r"[a-z0-9_-]{1,32}", channel) else "other"
