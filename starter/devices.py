"""What a person's device and e-mail address tell while they are at hand: signs, of which nothing is kept in the clear.

Rule 19's optional ones; whether any of them matters is the worker's policy.
"""

from disposable_email_domains import blocklist
from ua_parser import parse_user_agent

from ledger import signals
from ledger.database import Transaction
from program.identity import normalise_email
from program.signals import Handling
from starter.models import SeenWith
from starter.services import Services


async def remember(
    transaction: Transaction, services: Services, account_id: str, seen: SeenWith, *, at_signup: bool = False
) -> None:
    """Keep the keyed hash of what an account, which is locked, was seen with.

    Nothing is kept where the sign is off, where only one of address and browser was passed, or where no browser is
    known by what it says of itself: that would be everybody's.
    """
    if services.settings.signal_same_device is Handling.OFF or not (seen.client_ip and seen.user_agent):
        return
    browser = parse_user_agent(seen.user_agent)
    if browser is not None:
        device = services.hashes.device(seen.client_ip, browser.family)
        await signals.saw_device(transaction, account_id, device, at_signup=at_signup)


def is_disposable(email: str) -> bool:
    """Whether an e-mail address is at a provider of throw-away ones, or below its domain.

    Raises:
        ValueError: it is no e-mail address.
    """
    labels = normalise_email(email).rpartition("@")[2].split(".")
    return any(".".join(labels[start:]) in blocklist for start in range(len(labels) - 1))
