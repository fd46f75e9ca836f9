"""Whatever is sent to the API, as its document admits and as it does not, is answered as the document says."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.http_support import API_KEYS, Starter
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


async def test_nothing_that_is_sent_to_the_api_is_an_error_of_ours_or_has_an_answer_that_is_not_documented(
    starter: Starter, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    examples, seed = pytestconfig.getoption("--contract-examples"), pytestconfig.getoption("--contract-seed")
    async with listening(starter) as url:
        process = await asyncio.create_subprocess_exec(
            *(Path(sys.executable).parent / "schemathesis", "run", f"{url}/openapi.json"),
            *("--seed", str(seed), "--generation-database", "none", "--max-examples", str(examples)),
            *("--checks", ",".join(CHECKS), "--header", f"Authorization: Bearer {API_KEYS[0]}", "--warnings", "off"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
