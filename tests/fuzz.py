"""`python -m tests.fuzz`: whatever strangers send is read again and again, in ways that nobody thought of.

Each parser has what it is fed with, from noise to what is almost right, and what must hold of every answer: it refuses
with its own error, or what it gives can be relied on. `tests/test_security_parsers.py` does a little of it in every run
of the tests; this does it for as long as one likes, with other examples each time, and tells the figures.
"""

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import SystemRandom
from types import SimpleNamespace
from typing import Any, cast

import stripe
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from itsdangerous import URLSafeSerializer
from pydantic import BaseModel, SecretStr, ValidationError
from starlette.requests import Request, cookie_parser
from ua_parser import parse_user_agent

from billing.events import HANDLED_TYPES, MalformedEventError, reduce_event
from ledger.referrals import ClickedLink
from program.identity import network_of, normalise_email
from program.plans import PlansError, load_plans
from program.referral import AttributionWindow
from runtime.settings import PROJECT
from starter import cursors, portal
from starter.models import AccountPut, LinkRequest, SignupRequest, UsageRequest, channel_of
from starter.names import fit_to_show
from starter.preferences import takes_gzip
from starter.problems import ProblemError
from starter.services import Services
from starter.site import reader_locale
from starter.stripe_webhooks import TOLERANCE_SECONDS, _verify
from starter.tokens import InvalidTokenError, Tokens
from starter.visitors import visitor
from tests.stripe_events import (
    charge_refunded,
    checkout_completed,
    dispute,
    invoice_paid,
    invoice_payment_paid,
    price,
    subscription,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WINDOW = timedelta(days=90)
SECRETS = ("a secret that only the fuzzer uses", "the one that it used before")
BIGGEST_TEXT = 255
"""In characters; what is longer, no column takes."""

Json = Any
Check = Callable[[Any], None]


class FuzzError(AssertionError):
    """A parser gave something that it must not give."""


def hold(condition: object, words: str) -> None:
    """Fail with some words where a condition does not hold."""
    if not condition:
        raise FuzzError(words)


@dataclass
class Parser:
    """Something that reads what strangers send.

    Args:
        name: how it is called in the figures.
        fed: what it is fed with.
        check: reads one example, and fails where what must hold does not.
    """

    name: str
    fed: st.SearchStrategy[Any]
    check: Check
    examples: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)

    def run(self, examples: int, number: int) -> None:
        """Feed it with so many examples, which a number decides; a finding is kept, as small as it could be made."""
        seen: list[Any] = []

        @seed(number)
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            report_multiple_bugs=False,
        )
        @given(self.fed)
        def feed(example: Any) -> None:
            self.examples += 1
            seen[:] = [example]
            self.check(example)

        began = time.process_time()
        try:
            feed()
        except Exception as error:
            last = "".join(traceback.format_exception_only(error)).strip()
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.findings.append(f"{last} at {Path(where.filename).name}:{where.lineno}, with {seen[0]!r}")
        self.seconds += time.process_time() - began


# What is fed

texts = st.one_of(st.text(max_size=80), st.text(st.characters(max_codepoint=127), max_size=80))
headers = st.text(st.characters(max_codepoint=255), max_size=300)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    texts,
    st.sampled_from(["", "\0", "\ud800", "a" * 256, "0", "cus_1", "evt\r\nSet-Cookie: a=b", "1" * 20]),
)
documents: st.SearchStrategy[Json] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[Json]) -> Json:
    """A document that was right, with some of its values replaced, taken away or put elsewhere."""
    document = json.loads(json.dumps(draw(whole)))
    for _ in range(draw(st.integers(0, 3))):
        places = list(_places(document))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        match draw(st.integers(0, 3)):
            case 0:
                del holder[key]
            case 1:
                holder[key] = draw(documents)
            case 2:
                holder[key] = [holder[key]] * draw(st.integers(0, 3))
            case _:
                other, name = draw(st.sampled_from(places))
                with contextlib.suppress(KeyError, IndexError):
                    holder[key] = json.loads(json.dumps(other[name]))
    return document


def _places(document: Json) -> Iterator[tuple[Any, Any]]:
    held = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, value in list(held):
        yield document, key
        yield from _places(value)


@st.composite
def altered(draw: st.DrawFn, whole: st.SearchStrategy[str], letters: st.SearchStrategy[str] | None = None) -> str:
    """A text that was right, with pieces of it cut out, doubled or written over."""
    text = draw(whole)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 20)))
        piece = draw(st.one_of(headers if letters is None else letters, st.just(text[start:end] * 2), st.just("")))
        text = text[:start] + piece + text[end:]
    return text


# Tokens, cookies and cursors

_tokens = Tokens(SECRETS, WINDOW)
_click = ClickedLink("0123456789abcdef01234567", "abcdefghjk", "whatsapp", AttributionWindow(NOW, WINDOW))
_token = _tokens.sign(_click)
_signed_elsewhere = st.builds(
    lambda document, salt: str(URLSafeSerializer(SECRETS[0], salt=salt).dumps(document)),
    st.lists(st.one_of(st.text(max_size=20), st.integers(), st.none()), max_size=5),
    st.sampled_from(["referral-token", "cursor-referrals acct-1", "", "itsdangerous"]),
)
_strange_tokens = st.one_of(texts, headers, altered(st.just(_token)), altered(_signed_elsewhere))


def _read_token(text: str) -> None:
    with contextlib.suppress(InvalidTokenError):
        click = _tokens.read(text)
        hold(click == _click, f"a token that was not signed here was taken: {click}")


_cookies = st.one_of(
    headers,
    altered(st.just(f"kally_visit={_token}; kally_ref={_token}; a=b")),
    st.builds(lambda names: "; ".join(names), st.lists(_strange_tokens.map(lambda t: f"kally_ref={t}"), max_size=4)),
)


def _read_cookies(header: str) -> None:
    for value in cookie_parser(header).values():
        _read_token(value)


_services = cast(Services, SimpleNamespace(settings=SimpleNamespace(token_secrets=list(map(SecretStr, SECRETS)))))
_of = cursors.of_referrals("acct-1")
_place = (NOW, "0123456789abcdef01234567")
_cursor = cursors.cursor(_services, _of, _place) or ""
_others_cursor = cursors.cursor(_services, cursors.of_referrals("acct-2"), _place) or ""


def _read_cursor(text: str) -> None:
    with contextlib.suppress(ProblemError):
        hold(cursors.place(_services, _of, text) == _place, "a cursor that was not made for this list was taken")


# Stripe

_events = st.sampled_from(
    [
        subscription("cus_1", "sub_1", NOW, NOW + timedelta(days=30), ended_at=NOW),
        invoice_paid("cus_1", "sub_1", NOW, NOW + timedelta(days=30)),
        invoice_payment_paid("in_1", NOW, 2900),
        checkout_completed("cus_1", "acct-1"),
        charge_refunded("pi_1", 2900),
        dispute("pi_1", "lost"),
        price("price_1", "pro", created=NOW),
    ]
)
_any_type = st.builds(
    lambda document, kind: document | {"type": kind} if isinstance(document, dict) else document,
    damaged(_events),
    st.sampled_from(sorted(HANDLED_TYPES)),
)


def _reduce(document: Json) -> None:
    try:
        reduced = reduce_event(document)
    except MalformedEventError as error:
        hold(len(str(error)) < 100_000, "the words of an error have no end")
        return
    for text in _texts_of(reduced):
        hold("\0" not in text and len(text) <= BIGGEST_TEXT, f"no database stores {text!r}")
        text.encode()


def _texts_of(thing: Any) -> Iterator[str]:
    if isinstance(thing, str):
        yield thing
    elif isinstance(thing, tuple | list | frozenset):
        for each in thing:
            yield from _texts_of(each)
    elif hasattr(thing, "__dataclass_fields__"):
        for name in thing.__dataclass_fields__:
            yield from _texts_of(getattr(thing, name))


_BODY = b'{"id": "evt_1"}'
_PLAIN_SECRETS = ["whsec_the_first_of_the_fuzzer", "whsec_the_second_of_the_fuzzer"]
_WEBHOOK_SECRETS = list(map(SecretStr, _PLAIN_SECRETS))


def _signature(secret: str, offset: int) -> str:
    header: str = stripe.WebhookSignature.generate_signature_header(_BODY.decode(), secret, int(time.time()) + offset)
    return header


_good_signatures = st.builds(
    _signature,
    st.sampled_from([*_PLAIN_SECRETS, "whsec_of_somebody_else"]),
    st.sampled_from([0, -TOLERANCE_SECONDS - 60, TOLERANCE_SECONDS + 60]),
)
_pieces = st.sampled_from(["", "=", "=2", " ", "_0", "e1", ".0", "=t=", "\t"])
_rebuilt_signatures = st.builds(
    lambda header, after, more: ",".join([*(part + after for part in header.split(",")), *more]),
    _good_signatures,
    _pieces,
    st.lists(st.sampled_from(["t=0", "t=", "t", "v1=", "v1=0", "v0=1", "", "=", "t=9999999999"]), max_size=2),
)
_signatures = st.one_of(
    headers,
    _rebuilt_signatures,
    altered(_good_signatures),
    altered(_good_signatures, st.sampled_from(["=", ",", "t=", "t=1", "v1=", "=2", " ", "_", "+", "v0=", "e9", "-"])),
)
_bodies = st.one_of(st.just(_BODY), st.binary(max_size=40), st.just(_BODY + b" "), st.just(b"\xff"))


def _verify_signature(example: tuple[bytes, str]) -> None:
    body, header = example
    try:
        _verify(body, header, _WEBHOOK_SECRETS)
    except ProblemError as error:
        hold(error.status == 400, f"a signature is refused with {error.status}")
        return
    times = [part.split("=", 2)[1] for part in header.split(",") if part.startswith("t=")]
    signed_at = int(times[0])
    hold(abs(signed_at - time.time()) <= TOLERANCE_SECONDS + 5, "a signature of another time was taken")
    digests = [
        hmac.new(secret.encode(), f"{signed_at}.".encode() + body, hashlib.sha256).hexdigest()
        for secret in _PLAIN_SECRETS
    ]
    hold(any(f"v1={digest}" in header for digest in digests), "what nobody signed was taken")


# Bodies of the API

_bodies_of_calls: Mapping[type[BaseModel], Json] = {
    AccountPut: {
        "email": "rita@people.example",
        "created_at": "2026-01-01T00:00:00Z",
        "stripe_customer_id": "cus_1",
        "first_name": "Rita",
        "show_first_name": True,
        "client_ip": "2001:db8::1",
        "user_agent": "Mozilla/5.0",
    },
    LinkRequest: {"terms_version": "2026-01", "client_ip": "203.0.113.9", "user_agent": "Mozilla/5.0"},
    SignupRequest: {
        "account_id": "acct-1",
        "email": "rita@people.example",
        "created_at": "2026-01-01T00:00:00Z",
        "referral_code": "abcde-fghjk",
    },
    UsageRequest: {"usage_id": "call-1", "minutes": 3},
}


def _read_body(example: tuple[type[BaseModel], str]) -> None:
    model, body = example
    try:
        read = model.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        hold(errors, "a refusal without a reason")
        return
    for text in _texts_of(list(read.model_dump(mode="json").values())):
        text.encode()
    if isinstance(read, UsageRequest):
        hold(1 <= read.minutes <= 1_000_000, f"{read.minutes} minutes were taken")
        hold(0 < len(read.usage_id) <= 200, "a usage_id that no column takes")
    if isinstance(read, AccountPut | SignupRequest):
        normalise_email(read.email)
        hold(read.created_at.tzinfo is not None, "a time without a zone")
    if isinstance(read, SignupRequest) and read.referral_code is not None:
        _read_code(read.referral_code)


def _dumped(model: type[BaseModel]) -> st.SearchStrategy[str]:
    def dump(document: Json) -> str:
        return json.dumps(document)

    whole = st.just(_bodies_of_calls[model])
    return st.one_of(damaged(whole).map(dump), altered(whole.map(dump)), texts)


def _calls(*models: type[BaseModel]) -> st.SearchStrategy[tuple[type[BaseModel], str]]:
    return st.one_of([st.tuples(st.just(model), _dumped(model)) for model in models])


def _read_code(code: str) -> None:
    """What becomes of a code before the ledger looks for it, and of a channel."""
    looked_for = code.strip().replace("-", "").lower()
    looked_for.encode()
    channel = channel_of(code)
    hold(0 < len(channel) <= 32 and channel.isascii() and channel.isprintable(), f"a channel {channel!r}")


# What says who it is

_addresses = st.one_of(
    texts,
    st.emails(),
    altered(st.emails()),
    altered(st.sampled_from(["Rita.Rossi+kally@googlemail.com", "rita@bücher.example", "o'neill@EXAMPLE.org."])),
    st.builds("{}@{}".format, st.text(max_size=10), st.text(max_size=20)),
)


def _normalise(email: str) -> None:
    try:
        normal = normalise_email(email)
    except ValueError as error:
        hold(str(error) == "no e-mail address", "the refusal may repeat the address")
        return
    hold(normalise_email(normal) == normal, f"not the same twice: {normal!r}")
    hold(normal.count("@") >= 1, f"no address: {normal!r}")


_ips = st.one_of(
    texts,
    st.ip_addresses().map(str),
    altered(st.ip_addresses(v=6).map(str)),
    altered(st.sampled_from(["::ffff:192.0.2.1", "fe80::1%eth0", "192.0.2.1:80", "[2001:db8::1]:443"])),
)


def _read_ip(text: str) -> None:
    try:
        network = network_of(text)
    except ValueError as error:
        hold(str(error) == "no IP address", "the refusal may repeat the address")
        return
    hold(network_of(network.removesuffix("/64")) == network, f"not the same twice: {network!r}")


_agents = st.one_of(
    headers,
    altered(
        st.sampled_from(
            [
                "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 Version/18.6 Safari/604.1",
                "WhatsApp/2.24.20.89 A",
                "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
                "(" * 200,
                "Mozilla/" * 200,
            ]
        )
    ),
    st.builds(lambda piece, times: piece * times, st.text(min_size=1, max_size=4), st.integers(1, 2000)),
)


def _read_agent(agent: str) -> None:
    visitor("GET", {"user-agent": agent})
    parse_user_agent(agent[:1024])


_languages = st.one_of(
    headers,
    altered(st.sampled_from(["de-CH, fr;q=0.9, en;q=0.8, *;q=0.5", "gzip, deflate, br;q=0", "zh-Hant-TW;q=nan"])),
    st.lists(st.sampled_from(["de", "en-US", "*", ";q=", "1e9", "inf", "nan", ",", "-", "_", "x-y"]), max_size=12).map(
        "".join
    ),
)


def _read_preferences(header: str) -> None:
    reader_locale(header)
    takes_gzip(header)


def _read_name(name: str) -> None:
    shown = fit_to_show(name)
    hold(shown is None or not set(shown) & set('<>&"{}@/:\0\r\n'), f"shown to strangers: {shown!r}")


# Files and forms

_plans_file = (PROJECT / "plans.toml").read_text()
_TOML_PIECES = ["[[plan]]\n", "[not_plans]\n", "minutes = -1\n", "= ", '"', "'''", "[", "0x", "1e9", "nan", "{", "\0"]
_tomls = st.one_of(texts, altered(st.just(_plans_file)), altered(st.just(_plans_file), st.sampled_from(_TOML_PIECES)))
_folder = Path(tempfile.gettempdir())


def _read_plans(text: str) -> None:
    with tempfile.NamedTemporaryFile("wb", suffix=".toml") as file:
        file.write(text.encode("utf-8", "surrogatepass"))
        file.flush()
        with contextlib.suppress(PlansError):
            for plan in load_plans(Path(file.name)):
                hold(plan.bonus >= 1 and plan.price_cents >= 1, f"no plan to sell: {plan}")


_forms = st.one_of(
    st.binary(max_size=200),
    altered(st.just("session=abc&terms_version=2026-01")).map(lambda form: form.encode()),
    st.lists(st.sampled_from(["a=b", "&", "%", "%00", "%zz", "=", "session=x", ";"]), max_size=30).map(
        lambda parts: "".join(parts).encode()
    ),
)


def _read_form(body: bytes) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    fields = asyncio.run(portal._form(Request({"type": "http", "headers": [], "method": "POST"}, receive)))
    hold(len(fields) <= 10, "a form of more fields than any page has")


def parsers() -> list[Parser]:
    """All of them, with no figures yet."""
    codes = st.one_of(texts, altered(st.sampled_from(["abcdefghjk", "ABCDE-FGHJK", "whatsapp"])))
    return [
        Parser("link tokens", _strange_tokens, _read_token),
        Parser("cookies", _cookies, _read_cookies),
        Parser("cursors", st.one_of(texts, altered(st.sampled_from([_cursor, _others_cursor]))), _read_cursor),
        Parser("Stripe events", st.one_of(documents, damaged(_events), _any_type), _reduce),
        Parser("Stripe signatures", st.tuples(_bodies, _signatures), _verify_signature),
        Parser("usage bodies", _calls(UsageRequest), _read_body),
        Parser("account and signup bodies", _calls(AccountPut, LinkRequest, SignupRequest), _read_body),
        Parser("e-mail addresses", _addresses, _normalise),
        Parser("IP addresses", _ips, _read_ip),
        Parser("user agents", _agents, _read_agent),
        Parser("languages and encodings", _languages, _read_preferences),
        Parser("first names", st.one_of(texts, st.text(max_size=30)), _read_name),
        Parser("codes and channels", codes, _read_code),
        Parser("plans files", _tomls, _read_plans),
        Parser("forms", _forms, _read_form),
    ]


def run(minutes: float, first_seed: int, only: str | None = None, examples_a_turn: int = 500) -> list[Parser]:
    """Feed all parsers in turn until the time is over; each is fed at least once."""
    chosen = [parser for parser in parsers() if only is None or only in parser.name]
    until = time.monotonic() + minutes * 60
    number = first_seed
    while True:
        for parser in chosen:
            if not parser.findings:
                parser.run(examples_a_turn, number)
        number += 1
        if time.monotonic() >= until or all(parser.findings for parser in chosen):
            return chosen


def main() -> int:
    """Fuzz, and say what came of it; the last line is JSON. 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for how long, by the clock on the wall")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(1_000_000), help="decides the examples")
    parser.add_argument("--only", help="parsers with this in their name")
    options = parser.parse_args()
    chosen = run(options.minutes, options.seed, options.only)
    if not chosen:
        parser.error(f"no parser is called {options.only}")
    for each in chosen:
        print(f"{each.name:<26} {each.examples:>11,} examples {each.seconds:>8.0f} s  {len(each.findings)} findings")
        for finding in each.findings:
            print(f"    {finding}")
    figures = {
        "seed": options.seed,
        "cpu_seconds": round(sum(each.seconds for each in chosen)),
        "examples": {each.name: each.examples for each in chosen},
        "findings": sum(len(each.findings) for each in chosen),
    }
    print(json.dumps(figures))
    return 1 if figures["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
