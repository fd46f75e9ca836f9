"""Who is the same person: normalised addresses (rules 10 and 18) and the keyed hashes that remain (rule 23)."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from program.identity import IdentityHash, network_of, normalise_email

KEY = "a key of the deployment"

EMAIL_HASH = "7916304230a8880f5812240a9545d12f16856632a6959ba9455d2142947aef60"
DEVICE_HASH = "1b27ae1afc04460c2da80532dd5e847e17afae3bdc089d754de8aa9bf1ab4db2"
CUSTOMER_HASH = "40e8868a6ef9dbdd8abe0d7ac40deb1c3936491acce80cf7571173cc88240c25"


def normalised(email: str) -> str | None:
    """The address's one form; none if it is no address."""
    try:
        return normalise_email(email)
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("email", "mailbox"),
    [
        ("ann@example.com", "ann@example.com"),
        ("Ann.Lee@Example.COM", "ann.lee@example.com"),
        ("  ann@example.com\n", "ann@example.com"),
        ("ann@example.com.", "ann@example.com"),
        # Gmail ignores dots and tags, and has two names.
        ("Ann.Lee@gmail.com", "annlee@gmail.com"),
        ("a.n.n.l.e.e+kally@gmail.com", "annlee@gmail.com"),
        ("annlee+a+b@GoogleMail.com", "annlee@gmail.com"),
        ("ann.lee+x@gmail.com.", "annlee@gmail.com"),
        # These ignore tags only.
        ("ann.lee+kally@outlook.com", "ann.lee@outlook.com"),
        ("ann.lee+kally@hotmail.com", "ann.lee@hotmail.com"),
        ("ann.lee+kally@icloud.com", "ann.lee@icloud.com"),
        ("ann.lee+kally@fastmail.com", "ann.lee@fastmail.com"),
        ("annlee+kally@protonmail.com", "annlee@proton.me"),
        ("annlee+kally@pm.me", "annlee@proton.me"),
        # Elsewhere both may be part of the name.
        ("ann.lee+kally@example.com", "ann.lee+kally@example.com"),
        ("ann.lee+kally@mygmail.com", "ann.lee+kally@mygmail.com"),
        ("ann.lee@mail.gmail.com", "ann.lee@mail.gmail.com"),
        # A tag alone, or dots alone, is a name.
        ("+kally@gmail.com", "+kally@gmail.com"),
        ("...@gmail.com", "...@gmail.com"),
        # One domain, written in its own script or for machines.
        ("ann@Müller.example", "ann@xn--mller-kva.example"),
        ("ann@xn--mller-kva.example", "ann@xn--mller-kva.example"),
        ("ann@\uff47\uff4d\uff41\uff49\uff4c.com", "ann@gmail.com"),
        ("a.nn@gmail。com", "ann@gmail.com"),
        ("a.nn@gmail.com。", "ann@gmail.com"),
        # One letter, written as one sign or as two.
        ("jos\u00e9@example.com", "jos\u00e9@example.com"),
        ("jose\u0301@example.com", "jos\u00e9@example.com"),
        # The last @ parts them.
        ('"a@b"@googlemail.com', '"a@b"@gmail.com'),
    ],
)
def test_rule_10_one_mailbox_has_one_address(email: str, mailbox: str) -> None:
    assert normalise_email(email) == mailbox


@pytest.mark.parametrize(
    "email",
    [
        "",
        " ",
        "@",
        "ann",
        "ann@",
        "@example.com",
        "ann@.",
        "ann@ ",
        "ann@。",
        "ann@\u00ad",
        "ann@ü..example",
        "ann@\r.",
        "ann@example.com \uff0e",
        "ann@ü\u00a0\u00ad",
        "ann@\uff20",
        "ann@exa mple.com",
        "ann@exa\0mple.com",
    ],
)
def test_rule_10_what_is_no_address_is_refused(email: str) -> None:
    with pytest.raises(ValueError, match=r"^no e-mail address$"):
        normalise_email(email)


def test_rule_24_the_refusal_does_not_repeat_the_address() -> None:
    for email in ("annlee", "ann@lee..ü.example", "ann@" + "ü" * 80, "ann@annlee\udc80.example"):
        with pytest.raises(ValueError, match="e-mail") as refused:
            normalise_email(email)

        assert str(refused.value) == "no e-mail address"
        # Nor does what a traceback in a log would show.
        assert refused.value.__suppress_context__ or refused.value.__context__ is None


names = st.text("abcxyzABCXYZ0189-_", min_size=1, max_size=12)
parts = st.lists(names, min_size=1, max_size=4)
GMAIL = st.sampled_from(["gmail.com", "googlemail.com", "GMail.com", "GOOGLEMAIL.COM."])
TAGGING = st.sampled_from(["outlook.com", "live.com", "me.com", "fastmail.fm", "hey.com", "zoho.com", "msn.com"])
PLAIN = st.sampled_from(["example.com", "yahoo.com", "web.de", "kally.example"])


@given(parts, names, GMAIL, GMAIL)
@settings(max_examples=100, deadline=None)
def test_rule_10_gmail_ignores_dots_tags_and_case(pieces: list[str], tag: str, one: str, other: str) -> None:
    plain = "".join(pieces)

    assert normalise_email(f"{'.'.join(pieces)}+{tag}@{one}") == normalise_email(f"{plain.upper()}@{other}")
    assert normalise_email(f"{plain}@{one}") == f"{plain.lower()}@gmail.com"


@given(parts, names, TAGGING)
@settings(max_examples=100, deadline=None)
def test_rule_10_others_ignore_tags_and_keep_dots(pieces: list[str], tag: str, domain: str) -> None:
    dotted = ".".join(pieces)

    assert normalise_email(f"{dotted}+{tag}@{domain}") == f"{dotted.lower()}@{domain}"
    assert len(pieces) == 1 or normalise_email(f"{''.join(pieces)}@{domain}") != normalise_email(f"{dotted}@{domain}")


@given(parts, names, PLAIN)
@settings(max_examples=100, deadline=None)
def test_rule_10_everybody_else_keeps_both(pieces: list[str], tag: str, domain: str) -> None:
    local = f"{'.'.join(pieces)}+{tag}"

    assert normalise_email(f"{local}@{domain}") == f"{local.lower()}@{domain}"


@given(st.text(max_size=20), st.text(max_size=12) | GMAIL | TAGGING)
@settings(max_examples=300, deadline=None)
def test_rule_10_a_normalised_address_stays_as_it_is(local: str, domain: str) -> None:
    once = normalised(f"{local}@{domain}")
    assume(once is not None)

    assert once is not None
    assert normalise_email(once) == once
    left, _, right = once.rpartition("@")
    assert left
    assert right
    assert right.isascii()


@given(st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_rule_10_case_never_matters(email: str) -> None:
    # Upper case cannot always be undone (ß is SS), folded case can.
    assert normalised(email.casefold()) == normalised(email)
    assert normalised(email.swapcase().casefold()) == normalised(email.swapcase())


# Not the zero byte: HMAC fills keys up with it.
secrets = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


def test_rule_23_one_person_has_one_hash() -> None:
    hashes = IdentityHash(KEY)

    assert hashes.email("Ann.Lee+kally@googlemail.com") == hashes.email("annlee@gmail.com")
    assert hashes.customer("cus_1") == hashes.customer("cus_1")
    # It outlives the process: what was remembered must be known again after years.
    assert IdentityHash(KEY).email("annlee@gmail.com") == hashes.email("annlee@gmail.com")


def test_rule_23_the_hash_of_today_is_the_hash_of_every_release() -> None:
    hashes = IdentityHash("0123456789abcdef")

    assert hashes.email("ann@example.com").hex() == EMAIL_HASH
    assert hashes.customer("cus_1").hex() == CUSTOMER_HASH


@given(secrets, secrets, names, names)
@settings(max_examples=100, deadline=None)
def test_rule_23_the_hash_differs_by_key_by_kind_and_by_person(key: str, other: str, one: str, two: str) -> None:
    assume(key != other)
    assume(one.lower() != two.lower())
    email = f"{one}@example.com"

    assert IdentityHash(key).email(email) != IdentityHash(other).email(email)
    assert IdentityHash(key).email(email) != IdentityHash(key).customer(email.lower())
    assert IdentityHash(key).email(email) != IdentityHash(key).email(f"{two}@example.com")
    assert IdentityHash(key).customer(one) != IdentityHash(other).customer(one)
    assert IdentityHash(key).customer(one) != IdentityHash(key).customer(two)


def test_rule_23_without_the_key_a_hash_tells_nothing_of_the_person() -> None:
    digest = IdentityHash(KEY).email("ann@example.com")

    assert len(digest) == 32
    assert b"ann" not in digest
    assert KEY not in repr(IdentityHash(KEY))


def test_rule_23_what_is_no_address_has_no_hash() -> None:
    with pytest.raises(ValueError, match="no e-mail address"):
        IdentityHash(KEY).email("ann")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("203.0.113.7", " 203.0.113.7\n"),
        ("203.0.113.7", "::ffff:203.0.113.7"),
        ("203.0.113.7", "::FFFF:CB00:7107"),
        # One household has a /64; its devices change the rest by themselves.
        ("2001:db8:1:2::1", "2001:0DB8:0001:0002:abcd:ef01:2345:6789"),
        ("fe80::1%eth0", "fe80::2"),
    ],
)
def test_rule_19_one_network_in_all_its_spellings(one: str, other: str) -> None:
    assert network_of(one) == network_of(other)
    assert IdentityHash(KEY).device(one, "Firefox") == IdentityHash(KEY).device(other, "Firefox")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("203.0.113.7", "203.0.113.8"),
        ("2001:db8:1:2::1", "2001:db8:1:3::1"),
        ("::ffff:203.0.113.7", "::ffff:203.0.113.8"),
    ],
)
def test_rule_19_two_networks_stay_two(one: str, other: str) -> None:
    assert network_of(one) != network_of(other)
    assert IdentityHash(KEY).device(one, "Firefox") != IdentityHash(KEY).device(other, "Firefox")


@pytest.mark.parametrize("ip", ["", " ", "unknown", "203.0.113", "203.0.113.256", "203.0.113.7:443", "[::1]", "a, b"])
def test_rule_24_what_is_no_ip_address_is_refused_and_not_repeated(ip: str) -> None:
    with pytest.raises(ValueError, match=r"^no IP address$") as refused:
        network_of(ip)

    assert refused.value.__suppress_context__


def test_rule_19_a_device_is_known_by_network_and_browser_together() -> None:
    hashes = IdentityHash("0123456789abcdef")
    device = hashes.device("203.0.113.7", "Firefox")

    assert device != hashes.device("203.0.113.7", "Chrome")
    assert device != IdentityHash(KEY).device("203.0.113.7", "Firefox")
    # What was remembered is known again by every release.
    assert device.hex() == DEVICE_HASH
