"""Who is the same person: normalised e-mail addresses and keyed hashes (rules 10, 18 and 23)."""

import hashlib
import hmac
import unicodedata
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

ACCOUNT_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
"""An opaque id. An `@` is refused: an e-mail address as an id would end up in histories and logs (rule 24)."""

_IGNORED = {"gmail.com": ".", "proton.me": ".-_"}
"""Characters that a provider takes for nothing."""

_TAGS = frozenset(
    {
        "gmail.com",
        "outlook.com",
        "outlook.de",
        "outlook.es",
        "outlook.fr",
        "outlook.it",
        "hotmail.com",
        "hotmail.co.uk",
        "hotmail.de",
        "hotmail.es",
        "hotmail.fr",
        "hotmail.it",
        "live.com",
        "live.co.uk",
        "live.de",
        "live.fr",
        "live.nl",
        "msn.com",
        "icloud.com",
        "me.com",
        "mac.com",
        "fastmail.com",
        "fastmail.fm",
        "proton.me",
        "hey.com",
        "zoho.com",
    }
)
_SAME_DOMAIN = {
    "googlemail.com": "gmail.com",
    "protonmail.com": "proton.me",
    "protonmail.ch": "proton.me",
    "pm.me": "proton.me",
}


def normalise_email(email: str) -> str:
    """One form for all spellings of an address that reach one mailbox (rule 10).

    Case never matters. Dots and ``+tags`` are dropped only for the providers that ignore them.

    Raises:
        ValueError: there is no ``@`` with something on both sides.
    """
    # A letter with an accent has two encodings; which one is sent is up to the device.
    folded = unicodedata.normalize("NFD", email.strip()).casefold()
    local, separator, domain = unicodedata.normalize("NFC", folded).rpartition("@")
    domain = _ascii_domain(domain)
    if not (local and separator and domain):
        raise ValueError("no e-mail address")
    domain = _SAME_DOMAIN.get(domain, domain)
    if domain in _TAGS:
        local = local.partition("+")[0] or local
    ignored = _IGNORED.get(domain, "")
    local = "".join(letter for letter in local if letter not in ignored) or local
    if local != local.strip():
        raise ValueError("no e-mail address")
    return f"{local}@{domain}"


def _ascii_domain(domain: str) -> str:
    if not domain.isascii():
        try:
            domain = domain.encode("idna").decode("ascii")
        except UnicodeError:
            # The codec's own words may repeat the address (rule 24).
            raise ValueError("no e-mail address") from None
    # Only now: the codec reads other scripts' full stops, blanks and signs too.
    if any(letter == "@" or letter.isspace() or not letter.isprintable() for letter in domain):
        raise ValueError("no e-mail address")
    return domain.rstrip(".")


def network_of(ip: str) -> str:
    """The network of whoever has an address: an IPv4 address itself, and of IPv6 the /64, for devices change the rest.

    Raises:
        ValueError: it is no IP address.
    """
    try:
        address: IPv4Address | IPv6Address = ip_address(ip.strip())
    except ValueError:
        # The parser's own words repeat the address (rule 24).
        raise ValueError("no IP address") from None
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or IPv6Network((int(address), 64), strict=False))
    return str(address)


_ERASED = "erased:"


def is_pseudonym(customer: str) -> bool:
    """Whether a customer is known by its pseudonym only, for its account was erased: Stripe cannot be asked for it."""
    return customer.startswith(_ERASED)


class IdentityHash:
    """Keyed hashes, so that an identity is known again although nothing that names the person is kept (rule 23)."""

    def __init__(self, key: str) -> None:
        """Take the secret key (``REFERRALS_IDENTITY_HASH_KEY``). With another key, nobody is known again."""
        self._key = key.encode()

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.digest(self._key, f"{kind}:{value}".encode(), hashlib.sha256)

    def email(self, email: str) -> bytes:
        """The hash of an e-mail address in its normalised form.

        Raises:
            ValueError: it is no e-mail address.
        """
        return self._digest("email", normalise_email(email))

    def customer(self, customer: str) -> bytes:
        """The hash of a Stripe customer id."""
        return self._digest("customer", customer)

    def pseudonym(self, customer: str) -> str:
        """What a Stripe customer is called once its account is erased (rule 23). A pseudonym stays what it is."""
        return customer if is_pseudonym(customer) else f"{_ERASED}{self.customer(customer).hex()}"

    def device(self, ip: str, browser: str) -> bytes:
        """The hash of a network and a browser's family together; neither can be looked for alone (rule 19).

        Raises:
            ValueError: it is no IP address.
        """
        return self._digest("device", f"{network_of(ip)} {browser}")
