"""Settings, read from the environment under the prefix ``REFERRALS_``.

Each program has a class of its own with only what it needs, so that no process is handed a secret it has no use for.
Secrets have no defaults. Temporal is configured the SDK's own way, by ``TEMPORAL_*``.
"""

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, AnyHttpUrl, BeforeValidator, Field, SecretStr, TypeAdapter, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from program.referral import ATTRIBUTION_WINDOW

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
DatabaseUrl = Annotated[SecretStr, BeforeValidator(_database_url)]


def _http_url(value: str) -> str:
    TypeAdapter(AnyHttpUrl).validate_python(value)
    return value


HttpUrl = Annotated[str, AfterValidator(_http_url)]
BaseUrl = Annotated[str, AfterValidator(_http_url), AfterValidator(lambda value: value.rstrip("/"))]
"""An address that paths are appended to."""


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
            lines = [
                f"  REFERRALS_{'_'.join(str(part) for part in problem['loc'][:1]).upper()}: {problem['msg']}"
                for problem in error.errors()
            ]
            raise SettingsError("\n".join(["the environment lacks what this program needs:", *lines])) from None


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


class LedgerSettings(_Settings):
    """What every program with the ledger behind it needs."""

    database_url: DatabaseUrl
    plans_file: Path = PROJECT / "plans.toml"
    task_queue: str = "referrals"


class WorkerSettings(LedgerSettings):
    """What ``worker.py`` needs. With ``deployment_name`` and ``build_id`` the worker is versioned (AUTO_UPGRADE)."""

    metrics_address: str | None = None
    deployment_name: str | None = None
    build_id: str | None = None


class StarterSettings(LedgerSettings):
    """What ``python -m starter`` needs."""

    api_keys: OwnSecrets
    stripe_webhook_secrets: OwnSecrets
    stripe_api_key: SecretStr | None = None
    stripe_api_base: BaseUrl = "https://api.stripe.com"
    public_url: BaseUrl
    signup_url: HttpUrl
    cookie_domain: str | None = None
    token_secrets: OwnSecrets
    identity_hash_key: OwnSecret
    attribution_window: Duration = ATTRIBUTION_WINDOW
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
