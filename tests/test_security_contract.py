"""Whatever is sent to the API, as its document admits and as it does not, is answered as the document says."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.http_support import API_KEYS, Starter, person
from tests.listening import listening

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
    "negative_data_rejection",
    "ensure_resource_availability",
    "use_after_free",
)

SUCCEEDS_ELSEWHERE = {"POST /v1/signups"}
"""Nothing that is made up is a code of a link; `tests/test_http_signups.py` has the answers to those that are."""


async def send_everything(
    starter: Starter, folder: Path, config: pytest.Config, *options: str, parameters: dict[str, str] | None = None
) -> None:
    """Have schemathesis send what the API's document admits, and what it does not; hold that it finds nothing.

    Args:
        starter: whose API.
        folder: of its own.
        config: says how many examples there are of each call, and from which seed.
        options: more of schemathesis's own.
        parameters: values that are always sent, by place and name.
    """
    examples, seed = config.getoption("--contract-examples"), config.getoption("--contract-seed")
    settings = folder / "schemathesis.toml"
    lines = [f'"{name}" = "{value}"\n' for name, value in (parameters or {}).items()]
    settings.write_text("".join(["[parameters]\n", *lines]), encoding="utf-8")
    async with listening(starter) as url:
        process = await asyncio.create_subprocess_exec(
            *(Path(sys.executable).parent / "schemathesis", "--config-file", settings, "run", f"{url}/openapi.json"),
            *("--seed", str(seed), "--generation-database", "none", "--max-examples", str(examples)),
            *("--checks", ",".join(CHECKS), "--header", f"Authorization: Bearer {API_KEYS[0]}", "--warnings", "off"),
            *options,
            cwd=folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


async def test_nothing_that_is_sent_to_the_api_is_an_error_of_ours_or_has_an_answer_that_is_not_documented(
    starter: Starter, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    await send_everything(starter, tmp_path, pytestconfig)


async def test_what_is_sent_about_an_account_and_a_referral_that_there_are_is_answered_as_documented_too(
    starter: Starter, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    rita = await starter.subscriber()
    code = await starter.link(rita)
    referral_id = await starter.signed_up(await starter.account(person("fred")), referral_code=code)
    known = {"path.account_id": rita.account_id, "path.referral_id": referral_id}
    before = await succeeded(starter)

    # What is erased would be unknown to the calls after it.
    await send_everything(starter, tmp_path, pytestconfig, "--exclude-method", "DELETE", parameters=known)

    after = await succeeded(starter)
    paths = (await starter.get("/openapi.json"))["paths"]
    calls = {
        f"{method.upper()} {path}" for path, methods in paths.items() for method in methods if path.startswith("/v1/")
    }
    expected = {call for call in calls if not call.startswith("DELETE")} - SUCCEEDS_ELSEWHERE
    assert len(expected) == 8
    assert {call for call in expected if after.get(call, 0) <= before.get(call, 0)} == set()


async def succeeded(starter: Starter) -> dict[str, float]:
    """How often each call was answered with success so far."""
    text = (await starter.send("GET", "/metrics")).text
    found: dict[str, float] = {}
    for labels, number in re.findall(r"^referrals_http_request_seconds_count\{(.*)\} (\S+)$", text, re.MULTILINE):
        of = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if of["status"].startswith("2"):
            call = f"{of['method']} {of['route']}"
            found[call] = found.get(call, 0) + float(number)
    return found
