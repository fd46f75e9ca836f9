"""The settings of each program: what is missing, empty, too short or malformed is refused at start, and kept secret."""

import os
from base64 import b64encode
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from program.referral import ATTRIBUTION_WINDOW
from program.signals import Handling, SignalPolicy
from runtime.settings import (
    LONGEST_DURATION,
    PROJECT,
    ImportSettings,
    LedgerSettings,
    MigrationSettings,
    ReconcileSettings,
    SettingsError,
    StarterSettings,
    WorkerSettings,
)

Program = type[StarterSettings] | type[WorkerSettings] | type[MigrationSettings] | type[ImportSettings]

DATABASE_URL = "postgresql://app:hunter2hunter2@db.example:5432/referrals"
STARTER = {
    "DATABASE_URL": DATABASE_URL,
    "API_KEYS": "api-key-0123456789",
    "STRIPE_WEBHOOK_SECRETS": "whsec_0123456789",
    "STRIPE_API_KEY": "sk_test_0123456789",
    "PUBLIC_URL": "https://refer.example",
    "SIGNUP_URL": "https://app.example/signup",
    "TOKEN_SECRETS": "token-secret-0123456789",
    "IDENTITY_HASH_KEY": "identity-hash-key-0123456789",
}
SECRET_LISTS = ["API_KEYS", "STRIPE_WEBHOOK_SECRETS", "TOKEN_SECRETS"]
SECRETS = [*SECRET_LISTS, "IDENTITY_HASH_KEY"]
REQUIRED = [name for name in STARTER if name != "STRIPE_API_KEY"]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting comes from the surroundings of the tests."""
    for name in [name for name in os.environ if name.upper().startswith("REFERRALS_")]:
        monkeypatch.delenv(name)


def put(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"REFERRALS_{name}", value)


def starter(monkeypatch: pytest.MonkeyPatch, **changes: str) -> StarterSettings:
    """The starter's settings, some of them changed."""
    put(monkeypatch, STARTER | changes)
    loaded = StarterSettings.load()
    assert isinstance(loaded, StarterSettings)
    return loaded


def refusal(program: Program) -> str:
    with pytest.raises(SettingsError) as refused:
        program.load()
    return str(refused.value)


def test_the_starter_has_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = starter(
        monkeypatch,
        STRIPE_API_BASE="http://127.0.0.1:12111/",
        COOKIE_DOMAIN="example.com",
        ATTRIBUTION_WINDOW="12h",
        PLANS_FILE="/etc/kally/plans.toml",
        HOST="0.0.0.0",  # noqa: S104
        PORT="9000",
        TASK_QUEUE="other",
    )

    assert loaded.database_url.get_secret_value() == DATABASE_URL.replace("postgresql:", "postgresql+psycopg:")
    assert [key.get_secret_value() for key in loaded.api_keys] == [STARTER["API_KEYS"]]
    assert [secret.get_secret_value() for secret in loaded.stripe_webhook_secrets] == ["whsec_0123456789"]
    assert loaded.stripe_api_key is not None
    assert loaded.stripe_api_key.get_secret_value() == STARTER["STRIPE_API_KEY"]
    assert [secret.get_secret_value() for secret in loaded.token_secrets] == [STARTER["TOKEN_SECRETS"]]
    assert loaded.identity_hash_key.get_secret_value() == STARTER["IDENTITY_HASH_KEY"]
    assert loaded.stripe_api_base == "http://127.0.0.1:12111"
    assert (loaded.public_url, loaded.signup_url) == ("https://refer.example", "https://app.example/signup")
    assert (loaded.host, loaded.port, loaded.task_queue) == ("0.0.0.0", 9000, "other")  # noqa: S104
    assert (loaded.cookie_domain, loaded.plans_file) == ("example.com", Path("/etc/kally/plans.toml"))
    assert loaded.attribution_window == timedelta(hours=12)


def test_what_is_no_secret_has_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = starter(monkeypatch)

    assert loaded.attribution_window == ATTRIBUTION_WINDOW == timedelta(days=90)
    assert loaded.plans_file == PROJECT / "plans.toml"
    assert loaded.plans_file.is_file()
    assert loaded.stripe_api_base == "https://api.stripe.com"
    assert (loaded.host, loaded.port, loaded.task_queue) == ("127.0.0.1", 8000, "referrals")
    assert loaded.cookie_domain is None


def test_no_secret_has_a_default() -> None:
    words = refusal(StarterSettings)

    assert sorted(line.partition(":")[0].strip() for line in words.splitlines()[1:]) == sorted(
        f"REFERRALS_{name}" for name in REQUIRED
    )
    assert words.count("Field required") == len(REQUIRED)


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("value", [None, ""])
def test_what_is_missing_or_empty_is_named_alone(monkeypatch: pytest.MonkeyPatch, name: str, value: str | None) -> None:
    put(monkeypatch, STARTER)
    monkeypatch.delenv(f"REFERRALS_{name}")
    if value is not None:
        put(monkeypatch, {name: value})

    assert refusal(StarterSettings).splitlines()[1:] == [f"  REFERRALS_{name}: Field required"]


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("value", [" ", " " * 20, "\t\n", "short", "x" * 15, "x" * 15 + "\n"])
def test_a_blank_or_short_secret_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    put(monkeypatch, STARTER | {name: value})

    (problem,) = refusal(StarterSettings).splitlines()[1:]
    assert problem.startswith(f"  REFERRALS_{name}: ")
    assert "at least" in problem


@pytest.mark.parametrize("name", SECRET_LISTS)
@pytest.mark.parametrize("value", [",", " , ,", "0123456789abcdef,short", "short,0123456789abcdef"])
def test_a_list_of_secrets_with_nothing_in_it_or_a_short_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    put(monkeypatch, STARTER | {name: value})

    assert f"REFERRALS_{name}: " in refusal(StarterSettings)


@pytest.mark.parametrize("name", SECRET_LISTS)
def test_several_secrets_keep_their_order_and_lose_what_surrounds_them(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    loaded = starter(monkeypatch, **{name: " second-0123456789 ,first-0123456789,,\n"})

    secrets = getattr(loaded, name.lower())
    assert [secret.get_secret_value() for secret in secrets] == ["second-0123456789", "first-0123456789"]


def test_a_secret_of_sixteen_characters_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = starter(monkeypatch, **dict.fromkeys(SECRETS, " 0123456789abcdef\n"))

    assert loaded.identity_hash_key.get_secret_value() == "0123456789abcdef"
    assert all(getattr(loaded, name.lower())[0].get_secret_value() == "0123456789abcdef" for name in SECRET_LISTS)


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("90d", timedelta(days=90)),
        ("12h", timedelta(hours=12)),
        ("5m", timedelta(minutes=5)),
        ("30s", timedelta(seconds=30)),
        ("P90D", timedelta(days=90)),
        ("PT12H", timedelta(hours=12)),
        ("P1DT30M", timedelta(days=1, minutes=30)),
        ("3650d", LONGEST_DURATION),
    ],
)
def test_rule_15_the_window_can_be_configured(monkeypatch: pytest.MonkeyPatch, text: str, window: timedelta) -> None:
    assert starter(monkeypatch, ATTRIBUTION_WINDOW=text).attribution_window == window


@given(number=st.integers(1, 10**6), unit=st.sampled_from("dhms"))
@settings(max_examples=50, deadline=None)
def test_rule_15_a_window_is_a_number_and_its_unit(number: int, unit: str) -> None:
    window = number * {"d": 86_400, "h": 3_600, "m": 60, "s": 1}[unit]

    with pytest.MonkeyPatch.context() as monkeypatch:
        put(monkeypatch, STARTER | {"ATTRIBUTION_WINDOW": f"{number}{unit}"})
        if window <= LONGEST_DURATION.total_seconds():
            assert StarterSettings.load().attribution_window.total_seconds() == window
        else:
            assert "days at most" in refusal(StarterSettings)


@pytest.mark.parametrize(
    "text", ["0d", "0s", "PT0S", "-1d", "-P1D", "90", "1.5d", "90x", "soon", "d", "3651d", "P20000D", "9" * 30 + "d"]
)
def test_rule_15_a_window_of_nothing_or_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    put(monkeypatch, STARTER | {"ATTRIBUTION_WINDOW": text})

    (problem,) = refusal(StarterSettings).splitlines()[1:]
    assert problem.startswith("  REFERRALS_ATTRIBUTION_WINDOW: ")


@pytest.mark.parametrize("program", [StarterSettings, WorkerSettings, MigrationSettings, ImportSettings])
@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_scheme_of_postgres_means_the_one_driver(
    monkeypatch: pytest.MonkeyPatch, program: Program, scheme: str
) -> None:
    put(monkeypatch, STARTER | {"DATABASE_URL": f"{scheme}://app:pass%2Fword@db/referrals?sslmode=require"})

    url = program.load().database_url.get_secret_value()
    assert url == "postgresql+psycopg://app:pass%2Fword@db/referrals?sslmode=require"


@pytest.mark.parametrize("program", [StarterSettings, WorkerSettings, MigrationSettings, ImportSettings])
@pytest.mark.parametrize(
    "url", ["mysql://app@db/referrals", "postgresql+asyncpg://app@db/r", "sqlite:///x", "db/referrals", "postgresql:/x"]
)
def test_another_database_is_refused(monkeypatch: pytest.MonkeyPatch, program: Program, url: str) -> None:
    put(monkeypatch, STARTER | {"DATABASE_URL": url})

    words = refusal(program)
    assert "REFERRALS_DATABASE_URL: " in words
    assert "postgresql://" in words
    assert url not in words


@pytest.mark.parametrize("name", ["PUBLIC_URL", "SIGNUP_URL", "STRIPE_API_BASE"])
@pytest.mark.parametrize("url", ["refer.example", "ftp://refer.example", "https://", "/signup", "javascript:alert(1)"])
def test_an_address_is_http_or_https(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    put(monkeypatch, STARTER | {name: url})

    assert f"REFERRALS_{name}: " in refusal(StarterSettings)


def test_the_signup_address_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "https://kally.example/signup?next=/"

    assert starter(monkeypatch, SIGNUP_URL=address).signup_url == address


@pytest.mark.parametrize("name", ["PUBLIC_URL", "STRIPE_API_BASE"])
def test_an_address_that_paths_are_appended_to_ends_without_a_slash(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    loaded = starter(monkeypatch, **{name: "http://localhost:8000/kally/"})

    assert getattr(loaded, name.lower()) == "http://localhost:8000/kally"


@pytest.mark.parametrize("port", ["-1", "65536", "http", "80.5"])
def test_a_port_is_a_port(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    put(monkeypatch, STARTER | {"PORT": port})

    assert "REFERRALS_PORT: " in refusal(StarterSettings)


def test_all_problems_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, STARTER | {"PORT": "x", "API_KEYS": "short", "PUBLIC_URL": "nowhere"})
    monkeypatch.delenv("REFERRALS_DATABASE_URL")

    named = sorted(line.partition(":")[0].strip() for line in refusal(StarterSettings).splitlines()[1:])
    assert named == [f"REFERRALS_{name}" for name in ("API_KEYS", "DATABASE_URL", "PORT", "PUBLIC_URL")]


def test_the_worker_needs_a_database_and_nothing_secret_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(WorkerSettings).splitlines()[1:] == ["  REFERRALS_DATABASE_URL: Field required"]

    put(monkeypatch, {"DATABASE_URL": DATABASE_URL})
    loaded = WorkerSettings.load()

    assert (loaded.metrics_address, loaded.deployment_name, loaded.build_id) == (None, None, None)
    assert loaded.identity_hash_key is None
    assert {name.lower() for name in SECRETS} & set(WorkerSettings.model_fields) == {"identity_hash_key"}


def test_rule_19_no_sign_is_looked_at_unless_the_operator_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, {"DATABASE_URL": DATABASE_URL})

    assert WorkerSettings.load().signals == SignalPolicy()
    policy = WorkerSettings.load().signals
    assert (policy.same_card, policy.same_device, policy.disposable_email, policy.many_signups) == (
        False,
        Handling.OFF,
        Handling.OFF,
        Handling.OFF,
    )
    assert starter(monkeypatch, STRIPE_API_KEY="").signal_same_device is Handling.OFF


def test_rule_19_the_operator_turns_each_sign_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "SIGNAL_SAME_DEVICE": "mark",
        "SIGNAL_DISPOSABLE_EMAIL": "hold",
        "SIGNAL_MANY_SIGNUPS": "mark",
        "SIGNAL_SIGNUPS_A_DAY": "3",
    }
    put(monkeypatch, {"DATABASE_URL": DATABASE_URL, **values})

    assert WorkerSettings.load().signals == SignalPolicy(
        same_device=Handling.MARK, disposable_email=Handling.HOLD, many_signups=Handling.MARK, signups_a_day=3
    )
    assert starter(monkeypatch).signal_same_device is Handling.MARK


@pytest.mark.parametrize("value", ["sk_live_1", " rk_live_1\n"])
def test_rule_19_cards_are_compared_as_soon_as_there_is_a_key(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    put(monkeypatch, {"DATABASE_URL": DATABASE_URL, "STRIPE_API_KEY": value, "STRIPE_API_BASE": "http://localhost:1/"})
    loaded = WorkerSettings.load()

    assert loaded.signals == SignalPolicy(same_card=True)
    assert loaded.stripe_api_key is not None
    assert loaded.stripe_api_key.get_secret_value() == value.strip()
    assert loaded.stripe_api_base == "http://localhost:1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SIGNAL_SAME_DEVICE", "on"),
        ("SIGNAL_DISPOSABLE_EMAIL", "true"),
        ("SIGNAL_MANY_SIGNUPS", "Hold it"),
        ("SIGNAL_SIGNUPS_A_DAY", "0"),
        ("SIGNAL_SIGNUPS_A_DAY", "many"),
        ("STRIPE_API_KEY", " \n"),
    ],
)
def test_rule_19_a_slip_never_turns_a_check_off(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    put(monkeypatch, {"DATABASE_URL": DATABASE_URL, name: value})

    (problem,) = refusal(WorkerSettings).splitlines()[1:]
    assert problem.startswith(f"  REFERRALS_{name}: ")


NEW, OLD, OTHER = (f"whsec_{b64encode(bytes([number] * 32)).decode()}" for number in (1, 2, 3))


def worker(monkeypatch: pytest.MonkeyPatch, endpoints: str, secrets: str) -> WorkerSettings:
    """The worker's settings with somebody to tell."""
    put(monkeypatch, {"DATABASE_URL": DATABASE_URL, "DELIVERY_ENDPOINTS": endpoints, "DELIVERY_SECRETS": secrets})
    loaded = WorkerSettings.load()
    assert isinstance(loaded, WorkerSettings)
    return loaded


def test_nobody_is_told_anything_unless_the_operator_says_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker(monkeypatch, "", "").delivery_endpoints == {}
    for program in (StarterSettings, MigrationSettings):
        assert not {"delivery_endpoints", "delivery_secrets"} & set(program.model_fields)


def test_each_endpoint_is_signed_for_by_its_own_secrets_and_everybody_s_the_newest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = worker(
        monkeypatch,
        " backend=https://backend.example/hooks?key=a=b , crm-2=http://127.0.0.1:8080/ ",
        f"{NEW}, crm-2={OTHER},{OLD}",
    )

    addresses = {name: address.get_secret_value() for name, address in loaded.delivery_endpoints.items()}
    assert addresses == {"backend": "https://backend.example/hooks?key=a=b", "crm-2": "http://127.0.0.1:8080/"}
    assert loaded.signing_secrets("backend") == [NEW, OLD]
    assert loaded.signing_secrets("crm-2") == [NEW, OTHER, OLD]


@pytest.mark.parametrize(
    ("endpoints", "secrets", "name"),
    [
        ("backend=https://b.example", "", "SECRETS"),
        ("backend=https://b.example,crm=https://c.example", f"backend={NEW}", "SECRETS"),
        ("backend=https://b.example", f"{NEW},crm={OLD}", "SECRETS"),
        ("backend=https://b.example", "whsec_", "SECRETS"),
        ("backend=https://b.example", f"{NEW},", None),
        ("backend=https://b.example", f"{NEW},whsec_c2hvcnQ=", "SECRETS"),
        ("backend=https://b.example", f"{NEW},whsec_no base64 at all, though long enough for it", "SECRETS"),
        ("backend=https://b.example", NEW.removeprefix("whsec_"), "SECRETS"),
        ("backend=http://b.example", NEW, "ENDPOINTS"),
        ("backend=http://127.0.0.1.b.example", NEW, "ENDPOINTS"),
        ("backend=http://10.0.0.1", NEW, "ENDPOINTS"),
        ("backend=http://localhost:1,crm=http://[::1]:2", NEW, None),
        ("backend=ftp://b.example", NEW, "ENDPOINTS"),
        ("backend=nowhere", NEW, "ENDPOINTS"),
        ("https://b.example", NEW, "ENDPOINTS"),
        ("Back End=https://b.example", NEW, "ENDPOINTS"),
        ("backend=https://b.example,backend=https://c.example", NEW, "ENDPOINTS"),
    ],
)
def test_what_is_told_is_signed_and_goes_by_https(
    monkeypatch: pytest.MonkeyPatch, endpoints: str, secrets: str, name: str | None
) -> None:
    if name is None:
        assert worker(monkeypatch, endpoints, secrets).signing_secrets("backend") == [NEW]
        return
    with pytest.raises(SettingsError) as refused:
        worker(monkeypatch, endpoints, secrets)

    assert f"REFERRALS_DELIVERY_{name}: " in str(refused.value)
    for hidden in (NEW.removeprefix("whsec_"), OLD.removeprefix("whsec_"), "b.example", "c2hvcnQ", "10.0.0.1"):
        assert hidden not in str(refused.value)


def test_the_worker_is_told_its_release_and_where_its_metrics_go(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"METRICS_ADDRESS": "127.0.0.1:9464", "DEPLOYMENT_NAME": "referrals", "BUILD_ID": "2026.11"}
    put(monkeypatch, {"DATABASE_URL": DATABASE_URL, **values})
    loaded = WorkerSettings.load()

    assert (loaded.metrics_address, loaded.deployment_name, loaded.build_id) == tuple(values.values())

    put(monkeypatch, dict.fromkeys(values, ""))
    loaded = WorkerSettings.load()

    assert (loaded.metrics_address, loaded.deployment_name, loaded.build_id) == (None, None, None)


def test_an_import_needs_the_ledger_and_stripe_and_is_given_nothing_else() -> None:
    assert sorted(refusal(ImportSettings).splitlines()[1:]) == [
        "  REFERRALS_DATABASE_URL: Field required",
        "  REFERRALS_IDENTITY_HASH_KEY: Field required",
        "  REFERRALS_STRIPE_API_KEY: Field required",
    ]

    stripe = {"stripe_api_key", "stripe_api_base"}
    assert set(ImportSettings.model_fields) == {"database_url", "plans_file", "identity_hash_key", *stripe}
    assert set(ReconcileSettings.model_fields) == {"task_queue"}


def test_migrations_run_as_the_owner_or_as_the_only_role(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="REFERRALS_MIGRATION_DATABASE_URL"):
        _ = MigrationSettings.load().owner_url

    put(monkeypatch, {"DATABASE_URL": "postgres://app@db/referrals"})
    assert MigrationSettings.load().owner_url == "postgresql+psycopg://app@db/referrals"

    put(monkeypatch, {"MIGRATION_DATABASE_URL": "postgres://owner@db/referrals"})
    assert MigrationSettings.load().owner_url == "postgresql+psycopg://owner@db/referrals"

    put(monkeypatch, {"MIGRATION_DATABASE_URL": ""})
    assert MigrationSettings.load().owner_url == "postgresql+psycopg://app@db/referrals"


def test_the_owner_s_address_is_no_setting_of_the_other_programs() -> None:
    for program in (LedgerSettings, StarterSettings, WorkerSettings, ImportSettings, ReconcileSettings):
        assert "migration_database_url" not in program.model_fields


@pytest.mark.parametrize("program", [StarterSettings, WorkerSettings, MigrationSettings, ImportSettings])
def test_no_secret_is_shown_by_settings(monkeypatch: pytest.MonkeyPatch, program: Program) -> None:
    put(monkeypatch, STARTER | {"MIGRATION_DATABASE_URL": DATABASE_URL.replace("app", "owner")})
    loaded = program.load()

    for shown in (repr(loaded), str(loaded), loaded.model_dump_json(), str(loaded.model_dump())):
        for value in ("hunter2", "api-key", "whsec", "sk_test", "token-secret", "identity-hash-key"):
            assert value not in shown


@pytest.mark.parametrize(
    "broken",
    [
        dict.fromkeys(SECRETS, "hush!"),
        {"DATABASE_URL": "mysql://app:hush!@db/referrals"},
        {"MIGRATION_DATABASE_URL": "hush!", "DATABASE_URL": "hush!"},
        {"PUBLIC_URL": "hush!", "SIGNUP_URL": "ftp://u:hush!@h", "ATTRIBUTION_WINDOW": "hush!", "PORT": "hush!"},
        # One bad setting must not drag the good ones beside it into the light.
        {"PORT": "x", "API_KEYS": "hush!0123456789abcdef", "IDENTITY_HASH_KEY": "hush!0123456789abcdef"},
    ],
)
@pytest.mark.parametrize("program", [StarterSettings, WorkerSettings, MigrationSettings, ImportSettings])
def test_no_value_is_shown_by_a_refusal(
    monkeypatch: pytest.MonkeyPatch, program: Program, broken: dict[str, str]
) -> None:
    put(monkeypatch, STARTER | broken)

    refused: SettingsError | None = None
    try:
        program.load()
    except SettingsError as error:
        refused = error

    assert refused is not None or program is not StarterSettings
    assert "hush" not in str(refused)
    # A log shows what led to an error unless it is suppressed.
    assert refused is None or (refused.__cause__ is None and refused.__suppress_context__)
