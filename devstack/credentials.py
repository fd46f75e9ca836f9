"""The secrets of a development stack: made once, kept in a file that only its owner reads."""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from devstack.errors import StackError


def _secret() -> str:
    return secrets.token_urlsafe(24)


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600, whole or not at all: no reader ever sees half of it, nor a wider mode."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)


@dataclass(frozen=True)
class Credentials:
    """Passwords of the database roles and the secrets that the starter checks; each stack has its own."""

    postgres_superuser_password: str = field(default_factory=_secret)
    postgres_owner_password: str = field(default_factory=_secret)
    postgres_app_password: str = field(default_factory=_secret)
    api_key: str = field(default_factory=lambda: f"kally_dev_{_secret()}")
    stripe_webhook_secret: str = field(default_factory=lambda: f"whsec_{_secret()}")
    token_secret: str = field(default_factory=_secret)
    identity_hash_key: str = field(default_factory=_secret)

    @classmethod
    def load(cls, path: Path) -> "Credentials":
        """Read the file, or make it with fresh secrets; what an older file lacks is added to it.

        Raises:
            StackError: the file is no JSON object of strings.
        """
        known: Mapping[str, Any] = {}
        if path.exists():
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
                if not all(isinstance(known[name], str) for name in known):
                    raise ValueError
            except (ValueError, TypeError):
                raise StackError(f"{path} is damaged: restore it, or remove its folder to start afresh") from None
        names = {each.name for each in fields(cls)}
        credentials = cls(**{name: value for name, value in known.items() if name in names})
        if asdict(credentials) != known:
            write_private(path, json.dumps({**known, **asdict(credentials)}, indent=2) + "\n")
        return credentials

    def __repr__(self) -> str:
        """Nothing secret: the object may end up in a traceback."""
        return "Credentials(…)"
