"""Whether the program lives and is ready, its metrics, and its OpenAPI document."""

import html
import re
from typing import Any

import psycopg
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from temporalio.client import Client

from ledger.migrate import newest_version
from tests.conftest import free_port
from tests.http_support import WHATSAPP, Starter, assert_problem, person

METHODS = {"get", "put", "post", "delete", "head", "patch", "options"}
PROBLEM = "application/problem+json"


async def test_the_program_lives_whatever_else_does(starter: Starter) -> None:
    dead = await Client.connect(f"127.0.0.1:{free_port()}", lazy=True)
    url = re.sub(r":\d+/", f":{free_port()}/", starter.urls.app)
    async with starter.another(temporal=dead, database_url=url) as cut_off:
        assert (await cut_off.send("GET", "/healthz")).status_code == 200


async def test_readiness_says_which_part_is_away(starter: Starter) -> None:
    answer = await starter.send("GET", "/readyz")
    assert (answer.status_code, answer.json()) == (200, {"postgres": True, "schema_current": True, "temporal": True})
    dead = await Client.connect(f"127.0.0.1:{free_port()}", lazy=True)
    async with starter.another(temporal=dead) as cut_off:
        answer = await cut_off.send("GET", "/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"postgres": True, "schema_current": True, "temporal": False}
    url = re.sub(r":\d+/", f":{free_port()}/", starter.urls.app)
    async with starter.another(database_url=url) as cut_off:
        answer = await cut_off.send("GET", "/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"postgres": False, "schema_current": False, "temporal": True}


async def test_a_schema_of_another_version_is_not_ready(
    starter: Starter, owner: "psycopg.Connection[tuple[Any, ...]]"
) -> None:
    owner.execute("UPDATE alembic_version SET version_num = '0000'")
    answer = await starter.send("GET", "/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"postgres": True, "schema_current": False, "temporal": True}
    owner.execute("DROP TABLE alembic_version")
    answer = await starter.send("GET", "/readyz")
    assert answer.status_code == 503
    assert answer.json()["schema_current"] is False


async def test_a_newer_schema_serves_this_code_until_something_is_taken_away(
    starter: Starter, owner: "psycopg.Connection[tuple[Any, ...]]"
) -> None:
    # While a release is rolled out its migrations have run, and the pods of the one before go on.
    owner.execute("UPDATE alembic_version SET version_num = '9999'")
    assert (await starter.send("GET", "/readyz")).status_code == 200
    owner.execute(f"COMMENT ON TABLE alembic_version IS 'serves {newest_version()}'")
    assert (await starter.send("GET", "/readyz")).status_code == 200
    owner.execute("COMMENT ON TABLE alembic_version IS 'serves 9998'")
    answer = await starter.send("GET", "/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"postgres": True, "schema_current": False, "temporal": True}
    # The code that did it can work with it, whatever it serves.
    owner.execute("UPDATE alembic_version SET version_num = %s", [newest_version()])
    assert (await starter.send("GET", "/readyz")).status_code == 200


async def test_metrics_count_requests_by_route_and_never_by_what_is_in_them(starter: Starter) -> None:
    rita = await starter.subscriber()
    code = await starter.link(rita)
    visit = await starter.click(code)
    await starter.follow(code, agent=WHATSAPP)
    fred = person("fred")
    await starter.signed_up(fred, referral_token=visit.token)
    await starter.send("GET", "/no/such/path")
    await starter.call("GET", f"/v1/accounts/{rita.account_id}/referrals", key=None)

    async def requests(**labels: str) -> float:
        return await starter.metric("referrals_http_request_seconds_count", **labels)

    assert await requests(route="/r/{code}", method="GET", status="302") == 1
    assert await requests(route="/r/{code}", method="GET", status="200") == 1
    assert await requests(route="/v1/accounts/{account_id}", method="PUT", status="200") == 1
    assert await requests(route="/v1/accounts/{account_id}/referrals", status="401") == 1
    assert await requests(route="none", status="404") == 1
    assert await starter.metric("referrals_signups_total", answer="accepted") == 1
    assert await starter.metric("referrals_stripe_events_total", answer="handled") == 2
    answer = await starter.send("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    for secret in (rita.account_id, fred.account_id, code, visit.token, visit.referral_id, "/no/such/path"):
        assert secret not in answer.text


async def test_errors_of_the_framework_are_problems_too(starter: Starter) -> None:
    assert_problem(await starter.send("GET", "/no/such/path"), 404, "not-found")
    answer = await starter.call("DELETE", "/v1/signups")
    assert_problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"
    assert_problem(await starter.send("GET", "/stripe/webhooks"), 405, "method-not-allowed")
    answer = await starter.call("POST", "/v1/accounts/acct-1")
    assert_problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "DELETE, PUT", "all methods of the address, which has several routes"


async def test_rule_24_an_error_that_nobody_foresaw_is_a_problem_and_is_logged_without_its_words(
    starter: Starter, owner: "psycopg.Connection[tuple[Any, ...]]", capsys: Any
) -> None:
    # PostgreSQL quotes the row that it refuses, the first name with it.
    owner.execute("ALTER TABLE account ADD CHECK (NOT show_first_name)")
    answer = await starter.put(person("fred"), first_name="Frederick", show_first_name=True)
    assert_problem(answer, 500, "internal-error")
    logged = "".join(capsys.readouterr())
    assert "unexpected error" in logged
    assert "CheckViolation" in logged
    assert "Frederick" not in logged + answer.text
    assert await starter.metric("referrals_http_request_seconds_count", status="500") == 1


async def test_the_interface_is_described_on_a_page_with_nothing_inline_and_nothing_from_elsewhere(
    starter: Starter,
) -> None:
    answer = await starter.send("GET", "/docs")
    assert answer.status_code == 200
    # A script of another host could see an open dashboard: it would be on the same site.
    assert "script" not in answer.text
    assert "style=" not in answer.text
    assert "src=" not in answer.text
    assert all(href.startswith("/assets/") for href in re.findall(r'<link[^>]*href="([^"]*)"', answer.text))
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    document = await document_of(starter)
    shown = html.unescape(answer.text)
    for path, methods in document["paths"].items():
        for method, call in methods.items():
            assert f"<code>{method.upper()} {path}</code>" in shown
            assert call.get("description", "") in shown
    anchors = re.findall(r'href="#([A-Z]\w*)"', answer.text)
    assert "AccountStanding" in anchors
    for name in {*anchors, *document["components"]["schemas"]}:
        assert answer.text.count(f'id="{name}"') == 1
    assert (await starter.send("GET", "/docs/oauth2-redirect")).status_code == 404


def references(part: Any) -> list[str]:
    """Every `$ref` of a document."""
    if isinstance(part, dict):
        return [value for key, value in part.items() if key == "$ref"] + [
            each for value in part.values() for each in references(value)
        ]
    return [each for value in part for each in references(value)] if isinstance(part, list) else []


async def document_of(starter: Starter) -> dict[str, Any]:
    answer = await starter.send("GET", "/openapi.json")
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


async def test_the_openapi_document_is_whole(starter: Starter) -> None:
    document = await document_of(starter)
    assert document["openapi"].startswith("3.1")
    assert document["info"]["title"]
    assert document["info"]["version"]
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in METHODS
    ]
    ids = [operation["operationId"] for _, _, operation in operations]
    assert len(set(ids)) == len(ids)
    for reference in references(document):
        place: Any = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
        assert place
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for path, method, operation in operations:
        assert operation["responses"], (path, method)
        named = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path)), (path, method)


async def test_the_openapi_document_has_the_whole_contract(starter: Starter) -> None:
    paths = (await document_of(starter))["paths"]
    contract = {
        ("get", "/r/{code}"): {"200", "302", "404", "503"},
        ("get", "/refer"): {"200"},
        ("get", "/terms"): {"200"},
        ("put", "/v1/accounts/{account_id}"): {"200", "401", "422", "503"},
        ("post", "/v1/accounts/{account_id}/referral-link"): {"200", "401", "403", "404", "422", "503"},
        ("post", "/v1/signups"): {"202", "401", "409", "422", "503"},
        ("post", "/stripe/webhooks"): {"200", "400", "503"},
        ("get", "/v1/referrals/{referral_id}"): {"200", "401", "404", "422", "503"},
        ("get", "/v1/accounts/{account_id}/referrals"): {"200", "401", "404", "422", "503"},
        ("get", "/v1/accounts/{account_id}/referral-summary"): {"200", "401", "404", "422", "503"},
        ("get", "/v1/accounts/{account_id}/bonus-minutes"): {"200", "401", "404", "422", "503"},
        ("get", "/healthz"): {"200"},
        ("get", "/readyz"): {"200", "503"},
        ("get", "/metrics"): {"200"},
    }
    for (method, path), statuses in contract.items():
        assert paths[path][method]["responses"].keys() >= statuses, path


async def test_every_problem_is_documented_as_one_and_every_keyed_call_as_keyed(starter: Starter) -> None:
    document = await document_of(starter)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert bool(operation.get("security")) == path.startswith("/v1/"), (path, method)
            for status, response in operation["responses"].items():
                if int(status) < 400 or path in ("/readyz", "/r/{code}"):
                    continue
                assert list(response["content"]) == [PROBLEM], (path, method, status)
    assert "HTTPValidationError" not in document["components"]["schemas"]
    problem = Draft202012Validator(document["components"]["schemas"]["Problem"])
    for answer in (
        await starter.call("GET", "/v1/accounts/a/referrals", key=None),
        await starter.call("GET", "/v1/accounts/a/referrals"),
        await starter.call("PUT", "/v1/accounts/a", {}),
    ):
        problem.validate(answer.json())
