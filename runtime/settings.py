"""Settings, read from the environment under the prefix ``REFERRALS_``.

Each program has a class of its own with only what it needs, so that no process is handed a secret it has no use for.
Secrets have no defaults. Temporal is configured the SDK's own way, by ``TEMPORAL_*``.
"""

import re
from base64 import b64decode
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from limits import parse_many
from pydantic import (
    AfterValidator,
    AliasChoices,
    AnyHttpUrl,
    BeforeValidator,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from program.referral import ATTRIBUTION_WINDOW
from program.signals import SIGNUPS_A_DAY, Handling, SignalPolicy

PROJECT = Path(__file__).resolve().parent.parent

LONGEST_DURATION = timedelta(days=3650)
"""A longer setting is a slip of the hand."""


class SettingsError(Exception):
    """The environment does not hold what the program needs; the message names each setting and what is wrong."""


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _strip(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _long_enough(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < 16:
        raise ValueError("must have at least 16 characters")
    return secret


def _each_long_enough(secrets: list[SecretStr]) -> list[SecretStr]:
    if any(len(secret.get_secret_value()) < 16 for secret in secrets):
        raise ValueError("each must have at least 16 characters")
    return secrets


def _duration(value: Any) -> Any:
    """``90d``, ``12h``, ``30m``, ``45s`` or ISO 8601 (``P90D``)."""
    match = re.fullmatch(r"(\d+)([dhms])", value) if isinstance(value, str) else None
    if match is None:
        return value
    unit = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}[match[2]]
    try:
        return timedelta(**{unit: int(match[1])})
    except OverflowError:
        return timedelta.max


def _sensible(value: timedelta) -> timedelta:
    # A window that runs past the calendar's end would fail at every click instead of here.
    if not timedelta(0) < value <= LONGEST_DURATION:
        raise ValueError(f"must be longer than nothing, and {LONGEST_DURATION.days} days at most")
    return value


def duration(text: str) -> timedelta:
    """A duration as a setting has it: ``90d``, ``12h``, ``30m``, ``45s`` or ISO 8601.

    Raises:
        ValueError: it is none, or none that is sensible; the message says why.
    """
    try:
        return _A_DURATION.validate_python(text)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"]) from None


def _database_url(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    scheme, separator, rest = value.partition("://")
    if not separator or scheme not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise ValueError("must look like postgresql://user:password@host:5432/database")
    return f"postgresql+psycopg://{rest}"


Secrets = Annotated[list[SecretStr], NoDecode, BeforeValidator(_split), Field(min_length=1)]
OwnSecrets = Annotated[Secrets, AfterValidator(_each_long_enough)]
OwnSecret = Annotated[SecretStr, BeforeValidator(_strip), AfterValidator(_long_enough)]
Duration = Annotated[timedelta, BeforeValidator(_duration), AfterValidator(_sensible)]
_A_DURATION: TypeAdapter[timedelta] = TypeAdapter(Duration)
ApiKey = Annotated[SecretStr, BeforeValidator(_strip), Field(min_length=1)]
"""A key that somebody else made."""
DatabaseUrl = Annotated[SecretStr, BeforeValidator(_database_url)]


def _http_url(value: str) -> str:
    TypeAdapter(AnyHttpUrl).validate_python(value)
    return value


_ENDPOINT = re.compile(r"[a-z][a-z0-9-]{0,31}")


def _named(value: Any) -> Any:
    """``name=value`` pairs, with commas between them."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in _split(value)]
    if any(not separator for _, separator, _ in pairs):
        raise ValueError("must look like name=value,name=value")
    names = [name.strip() for name, _, _ in pairs]
    if any(not _ENDPOINT.fullmatch(name) for name in names):
        raise ValueError("a name has up to 32 small letters, digits and hyphens, and begins with a letter")
    if len(set(names)) != len(names):
        raise ValueError("a name stands there twice")
    return {name: given.strip() for name, (_, _, given) in zip(names, pairs, strict=True)}


def _each_safe(addresses: dict[str, SecretStr]) -> dict[str, SecretStr]:
    for name, address in addresses.items():
        try:
            url = AnyHttpUrl(address.get_secret_value())
        except ValidationError:
            raise ValueError(f"{name} needs an address such as https://backend.example/webhooks") from None
        if url.scheme != "https" and not _on_this_machine(url.host or ""):
            raise ValueError(f"{name} must be reached by https")
    return addresses


def _on_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _signing_secret(given: SecretStr) -> tuple[str | None, str]:
    """Whose secret it is (none: everybody's), and the secret; ``whsec_…`` or ``name=whsec_…``."""
    text = given.get_secret_value()
    name, separator, secret = text.partition("=")
    if not separator or not secret.startswith("whsec_"):
        return None, text
    return name, secret


def _each_signs(secrets: list[SecretStr], others: ValidationInfo) -> list[SecretStr]:
    owners: set[str | None] = set()
    for given in secrets:
        owner, secret = _signing_secret(given)
        try:
            key = b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            key = b""
        if not secret.startswith("whsec_") or not 24 <= len(key) <= 64:
            raise ValueError("each must be whsec_ and 24 to 64 random bytes in base64")
        owners.add(owner)
    endpoints = set(others.data.get("delivery_endpoints", {}))
    if unknown := {str(owner) for owner in owners - {None}} - endpoints:
        raise ValueError(f"there is no endpoint {', '.join(sorted(unknown))}")
    if None not in owners and endpoints - owners:
        raise ValueError(f"needed to sign what is sent to {', '.join(sorted(endpoints - owners))}")
    return secrets


HttpUrl = Annotated[str, AfterValidator(_http_url)]
BaseUrl = Annotated[str, AfterValidator(_http_url), AfterValidator(lambda value: value.rstrip("/"))]
"""An address that paths are appended to."""


UNLIMITED = "off"
"""The rate of what is not limited."""


def _rate(value: str) -> str:
    """Such as ``600/minute``, several with semicolons between them, or ``off``."""
    if value != UNLIMITED:
        try:
            parse_many(value)
        except ValueError:
            raise ValueError(f"must look like 600/minute or 600/minute;5000/hour, or be {UNLIMITED}") from None
    return value


def _networks(values: list[str]) -> list[str]:
    # `*` is none: whoever came would say for himself where from.
    try:
        return [str(ip_network(value)) for value in values]
    except ValueError:
        raise ValueError("must be addresses or networks, such as 10.0.0.0/8, with commas between them") from None


Rate = Annotated[str, BeforeValidator(_strip), AfterValidator(_rate)]
Networks = Annotated[list[str], NoDecode, BeforeValidator(_split), AfterValidator(_networks)]


class _Settings(BaseSettings):
    # Values never appear in a validation error: some of them are secrets.
    model_config = SettingsConfigDict(env_prefix="REFERRALS_", env_ignore_empty=True, hide_input_in_errors=True)

    @classmethod
    def load(cls) -> "Any":
        """Read the environment.

        Raises:
            SettingsError: something is missing or malformed; the message names every such setting.
        """
        try:
            return cls()
        except ValidationError as error:
            lines = [f"  {flaw.setting}: {flaw.words}" for flaw in _flaws(error)]
            raise SettingsError("\n".join(["the environment lacks what this program needs:", *lines])) from None


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with a setting, without its value: some are secrets.

    Args:
        setting: its name in the environment.
        words: what is wrong.
        missing: it is not there at all.
    """

    setting: str
    words: str
    missing: bool


def flaws_of(settings: type[BaseSettings]) -> list[Flaw]:
    """What keeps the environment from being what a program needs; empty where nothing does."""
    try:
        settings()
    except ValidationError as error:
        return _flaws(error)
    return []


def _flaws(error: ValidationError) -> list[Flaw]:
    return [
        Flaw(_in_the_environment(problem["loc"]), problem["msg"], problem["type"] == "missing")
        for problem in error.errors()
    ]


def _in_the_environment(place: tuple[int | str, ...]) -> str:
    name = "".join(str(part) for part in place[:1]).upper()
    # One that may stand there under several names is told of by the first of them, as it is.
    return name if name.startswith(("REFERRALS_", "TEMPORAL_")) else f"REFERRALS_{name}"


class MigrationSettings(_Settings):
    """What ``referrals migrate`` needs: the role that owns the schema, or the only one where there is but one."""

    database_url: DatabaseUrl | None = None
    migration_database_url: DatabaseUrl | None = None

    @property
    def owner_url(self) -> str:
        """The database address of the schema's owner.

        Raises:
            SettingsError: neither address is set.
        """
        url = self.migration_database_url or self.database_url
        if url is None:
            raise SettingsError("set REFERRALS_MIGRATION_DATABASE_URL (or REFERRALS_DATABASE_URL)")
        return url.get_secret_value()


class RehearsalSettings(_Settings):
    """What ``referrals release-check`` may be given: a restored copy, and the addresses that it must not be."""

    copy_database_url: DatabaseUrl | None = None
    database_url: DatabaseUrl | None = None
    migration_database_url: DatabaseUrl | None = None

    @property
    def copy_url(self) -> str | None:
        """The address of a copy that may be migrated in place, if there is one.

        Raises:
            SettingsError: it names the database that the programs use.
        """
        if self.copy_database_url is None:
            return None
        copy = self.copy_database_url.get_secret_value()
        used = [url.get_secret_value() for url in (self.database_url, self.migration_database_url) if url]
        if _place(copy) in map(_place, used):
            raise SettingsError("REFERRALS_COPY_DATABASE_URL names the database in use: restore a copy and name that")
        return copy


def _place(url: str) -> tuple[str | None, int, str]:
    """Which database it is, whoever connects."""
    parts = urlsplit(url)
    return parts.hostname, parts.port or 5432, parts.path


class TemporalSetupSettings(_Settings):
    """What ``referrals setup-temporal`` needs: the queue that the Schedules' jobs are beside."""

    task_queue: str = "referrals"


class ReconcileSettings(_Settings):
    """What ``referrals reconcile`` needs: the queue that the reconciliation's own is beside."""

    task_queue: str = "referrals"


class LedgerSettings(_Settings):
    """What every program with the ledger behind it needs."""

    database_url: DatabaseUrl
    plans_file: Path = PROJECT / "plans.toml"
    task_queue: str = "referrals"


class InspectSettings(LedgerSettings):
    """What ``referrals inspect`` needs: the ledger, and where Temporal's Web UI is, for a link into it."""

    # The development stack and Temporal's own tools know it by the second name.
    ui_url: BaseUrl | None = Field(
        default=None, validation_alias=AliasChoices("REFERRALS_UI_URL", "TEMPORAL_UI_URL", "ui_url")
    )


class AttributeSettings(LedgerSettings):
    """What ``referrals attribute`` needs: the ledger, and for how long a click counts, as the starter has it."""

    attribution_window: Duration = ATTRIBUTION_WINDOW


class DoctorSettings(_Settings):
    """What ``referrals doctor`` looks at, as far as it is there; nothing of it is needed."""

    database_url: DatabaseUrl | None = None
    plans_file: Path = PROJECT / "plans.toml"
    task_queue: str = "referrals"
    stripe_webhook_secrets: Secrets | None = None
    stripe_api_key: ApiKey | None = None
    stripe_api_base: BaseUrl = "https://api.stripe.com"

    @classmethod
    def load_what_can_be(cls) -> "DoctorSettings":
        """Read the environment, and take what is malformed for missing."""
        flawed = {flaw.setting.removeprefix("REFERRALS_").lower() for flaw in flaws_of(cls)}
        return cls(**{name: cls.model_fields[name].default for name in flawed})


class StripeApiSettings(_Settings):
    """Stripe's API, for the programs that may read from it; without a key none does."""

    stripe_api_key: ApiKey | None = None
    stripe_api_base: BaseUrl = "https://api.stripe.com"


class DeliverySettings(_Settings):
    """Where the backend is told what happens, and what signs it; no endpoint, and it is not told."""

    delivery_endpoints: Annotated[
        dict[str, SecretStr], NoDecode, BeforeValidator(_named), AfterValidator(_each_safe)
    ] = Field(default_factory=dict)
    delivery_secrets: Annotated[list[SecretStr], NoDecode, BeforeValidator(_split), AfterValidator(_each_signs)] = (
        Field(default_factory=list, validate_default=True)
    )

    def signing_secrets(self, endpoint: str) -> list[str]:
        """The secrets that sign what is sent to an endpoint, the newest first."""
        known = map(_signing_secret, self.delivery_secrets)
        return [secret for owner, secret in known if owner in (None, endpoint)]


class ImportSettings(_Settings):
    """What ``referrals import`` needs."""

    database_url: DatabaseUrl
    plans_file: Path = PROJECT / "plans.toml"
    identity_hash_key: OwnSecret
    stripe_api_key: ApiKey
    stripe_api_base: BaseUrl = "https://api.stripe.com"


class DemoSettings(LedgerSettings):
    """What ``referrals demo`` needs: the ledger, and the key by which the starter knows people again."""

    identity_hash_key: OwnSecret


class SignalSettings(StripeApiSettings):
    """Which signs are looked at before a credit (rule 19)."""

    signal_same_device: Handling = Handling.OFF
    signal_disposable_email: Handling = Handling.OFF
    signal_many_signups: Handling = Handling.OFF
    signal_signups_a_day: Annotated[int, Field(ge=1, le=1_000_000)] = SIGNUPS_A_DAY

    @property
    def signals(self) -> SignalPolicy:
        """Which signs are looked at before a credit (rule 19); cards are compared where Stripe's API can be read."""
        return SignalPolicy(
            same_card=self.stripe_api_key is not None,
            same_device=self.signal_same_device,
            disposable_email=self.signal_disposable_email,
            many_signups=self.signal_many_signups,
            signups_a_day=self.signal_signups_a_day,
        )


class WhatIfSettings(LedgerSettings, SignalSettings):
    """What ``referrals what-if`` needs: the ledger, and the signs that the worker looks at."""


class WorkerSettings(LedgerSettings, SignalSettings, DeliverySettings):
    """What ``worker.py`` needs. With ``deployment_name`` and ``build_id`` the worker is versioned (AUTO_UPGRADE).

    Reconciliation needs a key for Stripe's API and the ``identity_hash_key``, which links customers to accounts.
    """

    identity_hash_key: OwnSecret | None = None
    metrics_address: str | None = None
    health_address: str | None = None
    deployment_name: str | None = None
    build_id: str | None = None


class StarterSettings(LedgerSettings, StripeApiSettings):
    """What ``python -m starter`` needs.

    Who asks is known by the address that the connection comes from, unless that is one of ``trusted_proxies``, which
    say so in ``X-Forwarded-For``. The limits are for one address, and for each process by itself.
    """

    api_keys: OwnSecrets
    stripe_webhook_secrets: OwnSecrets
    public_url: BaseUrl
    signup_url: HttpUrl
    account_url: HttpUrl | None = None
    cookie_domain: str | None = None
    token_secrets: OwnSecrets
    identity_hash_key: OwnSecret
    attribution_window: Duration = ATTRIBUTION_WINDOW
    signal_same_device: Handling = Handling.OFF
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    trusted_proxies: Networks = Field(default_factory=list)
    limit_clicks: Rate = "600/minute"
    limit_unknown_codes: Rate = "60/minute"
    limit_portal_tokens: Rate = "60/minute"
    limit_api_keys: Rate = "120/minute"
