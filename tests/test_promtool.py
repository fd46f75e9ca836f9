"""Where the tests' promtool comes from, on machines of every kind."""

import stat
from pathlib import Path

import pytest

from tests.promtool import NoPromtoolError, find_or_get

FOUND = "echo promtool, version 3.1"


def test_one_that_is_named_is_taken_and_no_other(tmp_path: Path) -> None:
    named = _program(tmp_path / "mine", FOUND)
    installed = _program(tmp_path / "bin/promtool", FOUND)
    environment = {"PATH": str(installed.parent)}
    assert find_or_get(environment | {"TEST_PROMTOOL": str(named)}, tmp_path / "kept") == named
    with pytest.raises(NoPromtoolError, match="gone"):
        find_or_get(environment | {"TEST_PROMTOOL": str(tmp_path / "gone")}, tmp_path / "kept")


def test_one_that_is_installed_or_kept_is_taken_if_it_starts(tmp_path: Path) -> None:
    broken = _program(tmp_path / "bin/promtool", "echo no such library >&2; exit 1")
    kept = _program(tmp_path / "kept", FOUND)
    assert find_or_get({"PATH": str(broken.parent)}, kept) == kept
    whole = _program(tmp_path / "whole/promtool", FOUND)
    assert find_or_get({"PATH": str(whole.parent)}, kept) == whole


def test_debian_s_package_is_unpacked_and_not_installed(tmp_path: Path) -> None:
    tools, kept = tmp_path / "bin", tmp_path / "lib/promtool"
    _program(tools / "apt-get", f'echo "$@" >> {tmp_path}/log; [ "$1" = download ] && : > prometheus_2_amd64.deb')
    unpacked = '"$3/usr/bin"'
    _program(
        tools / "dpkg-deb",
        f'/bin/mkdir -p {unpacked}; printf "#!/bin/sh\\n{FOUND}\\n" > {unpacked}/promtool; '
        f"/bin/chmod +x {unpacked}/promtool",
    )
    for _ in range(2):
        assert find_or_get({"PATH": str(tools)}, kept) == kept
    assert (tmp_path / "log").read_text() == "download -q prometheus\n", "it is got once"


def test_where_none_can_be_had_it_says_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(NoPromtoolError) as error:
        find_or_get({"PATH": str(tmp_path)}, tmp_path / "kept")
    assert "this is no Debian" in str(error.value)
    assert "TEST_PROMTOOL=" in str(error.value)


def _program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
