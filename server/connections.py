"""Open connections: how many there may be, and which of them nobody reads any more."""

import ipaddress
import logging
import resource
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from server.error_responses import ErrorAnswer

log = logging.getLogger(__name__)

TOO_MANY = ErrorAnswer(503, "server_error", "server_overloaded", "too many connections are open")
TOO_MANY_FROM_ADDRESS = ErrorAnswer(
    429,
    "rate_limit_error",
    "too_many_connections",
    "too many connections are open from this address",
)
# Connections beyond the limit that are kept for as long as it takes to say so.
NUM_REFUSED_AT_A_TIME = 256
# Files, libraries and the channel to the engine.
_OTHER_DESCRIPTORS = 256


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections may be open.

    in_all:      connections at most
    per_address: of them, from one address
    trusted:     comma-separated addresses and networks of proxies, or * for all; a proxy speaks
                 for many clients and has no limit of its own
    """

    in_all: int
    per_address: int
    trusted: str = ""


class OpenConnections:
    """Counts connections as they come and go."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._trusts_all = limits.trusted.strip() == "*"
        self._trusted = _networks(limits.trusted)
        self._by_address: Counter[str] = Counter()
        self._num_open = 0

    @property
    def is_flooded(self) -> bool:
        """Whether there are too many to tell each of them that there are too many."""
        return self._num_open > self._limits.in_all + NUM_REFUSED_AT_A_TIME

    def enter(self, address: str) -> ErrorAnswer | None:
        """Count a connection; why it is not served, or None when it is."""
        self._num_open += 1
        self._by_address[address] += 1
        if self._num_open > self._limits.in_all:
            return TOO_MANY
        is_over = self._by_address[address] > self._limits.per_address
        return TOO_MANY_FROM_ADDRESS if is_over and not self._is_trusted(address) else None

    def leave(self, address: str) -> None:
        """Count a connection that has closed."""
        self._num_open -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def _is_trusted(self, address: str) -> bool:
        if self._trusts_all:
            return True
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._trusted)


def _networks(addresses: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    networks = []
    for part in addresses.split(","):
        try:
            networks.append(ipaddress.ip_network(part.strip()))
        except ValueError:
            # uvicorn takes names here as well, which no peer of a TCP connection has.
            continue
    return networks


class Writes(Protocol):
    """A connection that may wait for its client to read."""

    @property
    def unread_bytes(self) -> int:
        """What waits to be sent while nothing more is written; 0 at other times."""
        ...

    def abort(self) -> None:
        """Close at once and drop what waits."""
        ...


class UnreadConnections:
    """Aborts connections whose clients read nothing for a time.

    A connection that is merely closed stays until its client has read the rest, that is for ever.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._waiting: dict[Writes, tuple[int, float]] = {}

    def sweep(self, connections: Iterable[Writes], *, now_s: float) -> None:
        """Look at all open connections; called a few times within the timeout."""
        waiting = {}
        for connection in connections:
            num_bytes = connection.unread_bytes
            if not num_bytes:
                continue
            before = self._waiting.get(connection)
            if before is None or before[0] != num_bytes:
                waiting[connection] = (num_bytes, now_s)
            elif now_s - before[1] < self._timeout_s:
                waiting[connection] = before
            else:
                connection.abort()
        self._waiting = waiting


def allow_descriptors(num_connections: int) -> None:
    """Raise this process's limit on open files to what so many connections need."""
    wanted = num_connections + NUM_REFUSED_AT_A_TIME + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning("the system allows %d open files; limit_concurrency needs %d", allowed, wanted)
