"""What a person's device and e-mail address tell while they are at hand: signs, of which nothing is kept in the clear.

Rule 19's optional ones; whether any of them matters is the worker's policy.
"""

from disposable_email_domains import blocklist
from ua_parser import parse_user_agent

from program.identity import normalise_email
from program.signals import Handling
from starter.models import SeenWith
from starter.services import Services


def device_of(services: Services, seen: SeenWith) -> bytes | None:
    """The keyed hash of what an account was seen with, to be kept.

    There is none where the sign is off, where only one of address and browser was passed, or where no browser is known
    by what it says of itself: that would be everybody's.
    """
    if services.settings.signal_same_device is Handling.OFF or not (seen.client_ip and seen.user_agent):
        return None
    browser = parse_user_agent(seen.user_agent)
    return services.hashes.device(seen.client_ip, browser.family) if browser is not None else None


def is_disposable(email: str) -> bool:
    """Whether an e-mail address is at a provider of throw-away ones, or below its domain.

    Raises:
        ValueError: it is no e-mail address.
    """
    labels = normalise_email(email).rpartition("@")[2].split(".")
    return any(".".join(labels[start:]) in blocklist for start in range(len(labels) - 1))
