"""The table at the end of a run: which rule is shown by how many tests, by the numbers in their names."""

import re
from collections import Counter

import pytest

RULES = range(1, 25)
"""The numbered rules of the program."""

_NAMED = re.compile(r"rules_(\d+(?:_(?:and_)?\d+)*)|rule_(\d+(?:_and_\d+)*)")


def rules_of(name: str) -> set[int]:
    """The rules that a test's name says it shows: `test_rule_7_…`, `test_rules_3_and_7_…`."""
    return {int(number) for named in _NAMED.findall(name) for number in re.findall(r"\d+", "_".join(named))}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table after the tests."""
    shown: dict[str, Counter[int]] = {}
    for outcome in ("passed", "failed", "error"):
        shown[outcome] = Counter(
            rule
            for report in terminalreporter.stats.get(outcome, [])
            if report.when == "call" or outcome == "error"
            for rule in rules_of(report.nodeid.rpartition("::")[2].partition("[")[0])
        )
    if not any(shown.values()):
        return
    terminalreporter.section("rules and their tests")
    for rule in RULES:
        passed, wrong = shown["passed"][rule], shown["failed"][rule] + shown["error"][rule]
        state = f"{passed} passed" + (f", {wrong} FAILED" if wrong else "") if passed + wrong else "-"
        terminalreporter.write_line(f"rule {rule:>2}  {state}")
