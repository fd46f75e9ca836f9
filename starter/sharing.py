"""Ways to share a link: an address for each channel, ready-made words, and a QR code."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import segno

DISCLOSURE = "This is my referral link: when you pay for a plan, I get bonus minutes too."
"""What every ready-made text says of the sharer's own advantage (rule 13)."""

INVITATION = (
    "KallyAI makes phone calls for me. Sign up with my link, and your first paid plan comes with bonus minutes."
)

WORDS = f"{INVITATION} {DISCLOSURE}"
"""The ready-made text; an address follows it."""

SUBJECT = "Bonus minutes on KallyAI"

CHANNELS: Mapping[str, str] = {
    "copy": "Copied link",
    "share": "Your device's share menu",
    "sms": "Text message",
    "email": "E-mail",
    "whatsapp": "WhatsApp",
    "x": "X",
    "facebook": "Facebook",
    "linkedin": "LinkedIn",
    "qr": "QR code",
    "link": "Plain link",
    "code": "Code at signup",
    "operator": "Put right by our team",
    "other": "Other ways",
}
"""The channels that are known by name."""


@dataclass(frozen=True, slots=True)
class Share:
    """One way to share: where its button leads, and whether that is another site."""

    channel: str
    href: str
    elsewhere: bool

    @property
    def name(self) -> str:
        """The channel's name."""
        return channel_name(self.channel)


def channel_name(channel: str) -> str:
    """A channel as a member reads it; one that is not known by name reads as it stands in the address."""
    return CHANNELS.get(channel, channel)


def link_address(public_url: str, code: str) -> str:
    """A member's link, without a channel."""
    return f"{public_url.rstrip('/')}/r/{quote(code, safe='')}"


def address(public_url: str, code: str, channel: str) -> str:
    """A member's link, as it is shared by one channel."""
    return f"{link_address(public_url, code)}?{urlencode({'c': channel})}"


def shares(public_url: str, code: str) -> tuple[Share, ...]:
    """A button for each channel that has an address of its own to share by, with words that disclose (rule 13)."""

    def link(channel: str) -> str:
        return address(public_url, code, channel)

    def words(channel: str) -> str:
        return f"{WORDS} {link(channel)}"

    return (
        # The odd `?&` is read by both kinds of phones.
        Share("sms", f"sms:?&{_query(body=words('sms'))}", elsewhere=False),
        Share("email", f"mailto:?{_query(subject=SUBJECT, body=words('email'))}", elsewhere=False),
        Share("whatsapp", f"https://wa.me/?{_query(text=words('whatsapp'))}", elsewhere=True),
        Share("x", f"https://x.com/intent/post?{_query(text=WORDS, url=link('x'))}", elsewhere=True),
        # Facebook shows the words only to some; the page offers them to be copied.
        Share(
            "facebook",
            f"https://www.facebook.com/sharer/sharer.php?{_query(u=link('facebook'), quote=WORDS)}",
            elsewhere=True,
        ),
        # The address that LinkedIn documents takes no words at all.
        Share(
            "linkedin",
            f"https://www.linkedin.com/feed/?{_query(shareActive='true', text=words('linkedin'))}",
            elsewhere=True,
        ),
    )


def qr_svg(url: str) -> bytes:
    """A QR code as an SVG file, dark on light with its quiet zone whatever it is laid on."""
    code, file = segno.make(url, error="m", micro=False), io.BytesIO()
    code.save(file, kind="svg", dark="#221a14", light="#ffffff", omitsize=True, svgclass=None, lineclass=None)
    return file.getvalue()


def _query(**values: str) -> str:
    # A plus would be read as a plus by mail and message programs.
    return urlencode(values, quote_via=quote)
