"""Whatever strangers send is read or refused, and nothing else; `make fuzz` does the same for as long as one likes."""

import pytest

from tests import fuzz
from tests.fuzz import Parser

EXAMPLES = 60


@pytest.mark.parametrize("parser", fuzz.parsers(), ids=lambda parser: parser.name)
def test_whatever_is_read_is_read_or_refused(parser: Parser) -> None:
    parser.run(EXAMPLES, number=1)
    assert not parser.findings
    assert parser.examples >= EXAMPLES


def test_what_a_parser_must_not_give_is_found_and_told_of() -> None:
    def check(text: str) -> None:
        fuzz.hold("a" not in text, "an a was taken")

    parser = Parser("texts without an a", fuzz.texts, check)
    parser.run(500, number=1)
    (finding,) = parser.findings
    assert "an a was taken" in finding
    assert finding.endswith("with 'a'"), "as small as it could be made"
