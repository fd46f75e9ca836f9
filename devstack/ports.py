"""Ports of this machine: whether one is free, and who holds it if not."""

import socket

import psutil

from devstack.errors import StackError

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int, host: str = LOOPBACK) -> bool:
    """Whether somebody accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def _is_free(port: int, host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do: connections of an earlier run that are still closing are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except PermissionError:
            raise StackError(f"port {port} is one that only root may listen on") from None
        except OSError:
            return False
    return True


def holder_of(port: int) -> str | None:
    """Who listens on the port, as `name (pid 42)`; None where the system does not tell."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            local = connection.laddr
            listens = connection.status == psutil.CONN_LISTEN and connection.pid is not None
            if listens and local and local.port == port:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass
    return None


def require_free(port: int, needed_by: str, option: str, host: str = LOOPBACK) -> None:
    """Make sure that a port can be listened on.

    Args:
        port: the port.
        needed_by: who is going to listen on it, for the message.
        option: how another one is chosen, for the message.
        host: the address to listen on.

    Raises:
        StackError: it is taken; the message names the port, who needs it, who holds it and the way out.
    """
    if not _is_free(port, host):
        holder = holder_of(port)
        held = f"is held by {holder}" if holder else "is taken by another program"
        raise StackError(f"port {port}, which {needed_by} needs, {held}; choose another one with {option}")
