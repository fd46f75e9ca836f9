"""A portal session from the terminal: the one-time address of a member's dashboard, over the public HTTP contract."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import httpx

from devstack.errors import StackError


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where the starter is, and a key that it accepts."""

    url: str
    api_key: str


@dataclass(frozen=True, slots=True)
class Session:
    """An address that works once, and until when it does (UTC)."""

    url: str
    expires_at: datetime


def written_environment(data: Path) -> dict[str, str]:
    """What a development stack has written into its `dev.env`; nothing where there never was one."""
    try:
        text = (data / "dev.env").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (word.partition("=") for line in text.splitlines() for word in shlex.split(line, comments=True))
    return {name: value for name, separator, value in pairs if separator}


def deployment(environment: Mapping[str, str], data: Path) -> Deployment:
    """The deployment that the environment names, or the development stack of a folder.

    Raises:
        StackError: only one of both settings is there, or neither and no stack either.
    """
    names = ("REFERRALS_URL", "REFERRALS_API_KEY")
    given = [environment.get(name, "") for name in names]
    if not any(given):
        written = written_environment(data)
        given = [written.get(name, "") for name in names]
        if not all(given):
            raise StackError(
                f"set {' and '.join(names)}, or start a development stack with make run: "
                f"there is none in {data}, or --data names another folder"
            )
    if not all(given):
        raise StackError(f"set both {' and '.join(names)}, or neither to use the development stack's")
    return Deployment(given[0].rstrip("/"), given[1])


def new_session(there: Deployment, account_id: str, transport: httpx.BaseTransport | None = None) -> Session:
    """Ask for a portal session of an account, as the product's backend does.

    Args:
        there: the deployment.
        account_id: whose dashboard.
        transport: another way to the deployment than the network.

    Raises:
        StackError: no answer, a refusal, or an answer that is not what the contract has.
    """
    path = f"/v1/accounts/{quote(account_id, safe='')}/portal-sessions"
    try:
        # No proxy and no .netrc of the environment: neither has any business with the key.
        with httpx.Client(base_url=there.url, timeout=15, trust_env=False, transport=transport) as client:
            answer = client.post(path, headers={"Authorization": f"Bearer {there.api_key}"})
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise StackError(f"{there.url} does not answer ({type(error).__name__}): is the stack running?") from None
    if not answer.is_success:
        raise StackError(f"{there.url} refused a portal session of {account_id}: {_why(answer)}")
    try:
        document = answer.json()
        return Session(str(document["url"]), datetime.fromisoformat(document["expires_at"]))
    except (ValueError, KeyError, TypeError):
        raise StackError(f"{there.url} answered with what is no portal session") from None


def _why(answer: httpx.Response) -> str:
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = answer.text.strip()[:200]
    return f"{answer.status_code} {detail}".strip()
