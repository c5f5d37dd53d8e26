import resource
from dataclasses import dataclass

import pytest

from server.connections import (
    NUM_REFUSED_AT_A_TIME,
    TOO_MANY,
    TOO_MANY_FROM_ADDRESS,
    ConnectionLimits,
    OpenConnections,
    UnreadConnections,
    allow_descriptors,
)
from server.settings import load_settings


def test_connections_are_limited_unless_somebody_says_otherwise():
    settings = load_settings({})
    assert settings.limit_concurrency == 4096
    assert settings.limit_concurrency_per_address == 1024


def test_the_connection_after_the_last_is_refused_until_one_closes():
    opened = OpenConnections(ConnectionLimits(in_all=2, per_address=2))
    answers = [opened.enter(address) for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3")]
    opened.leave("10.0.0.3")
    opened.leave("10.0.0.1")
    assert answers == [None, None, TOO_MANY]
    assert opened.enter("10.0.0.4") is None


def test_one_address_cannot_take_the_places_of_others():
    opened = OpenConnections(ConnectionLimits(in_all=10, per_address=1))
    answers = [opened.enter(address) for address in ("10.0.0.1", "10.0.0.1", "10.0.0.2")]
    assert answers == [None, TOO_MANY_FROM_ADDRESS, None]


@pytest.mark.parametrize("trusted", ["*", "10.0.0.1", "proxy, 10.0.0.0/8"])
def test_a_trusted_proxy_may_speak_for_many(trusted):
    opened = OpenConnections(ConnectionLimits(in_all=10, per_address=1, trusted=trusted))
    assert [opened.enter("10.0.0.1") for _ in range(3)] == [None] * 3


def test_more_than_can_be_told_are_a_flood():
    opened = OpenConnections(ConnectionLimits(in_all=1, per_address=1))
    for _ in range(NUM_REFUSED_AT_A_TIME + 1):
        opened.enter("10.0.0.1")
    before = opened.is_flooded
    opened.enter("10.0.0.1")
    assert (before, opened.is_flooded) == (False, True)


@dataclass(eq=False)
class Waiting:
    unread_bytes: int
    is_aborted: bool = False

    def abort(self):
        self.is_aborted = True


def test_only_a_connection_that_nobody_reads_is_aborted():
    unread, read, empty = Waiting(100), Waiting(100), Waiting(0)
    connections = UnreadConnections(timeout_s=2.0)
    for second in range(4):
        read.unread_bytes -= 10
        connections.sweep([unread, read, empty], now_s=float(second))
    assert [each.is_aborted for each in (unread, read, empty)] == [True, False, False]


def test_the_clock_begins_anew_with_every_byte_that_is_read():
    slow = Waiting(100)
    connections = UnreadConnections(timeout_s=2.0)
    for second in range(8):
        slow.unread_bytes -= second % 2
        connections.sweep([slow], now_s=float(second))
    assert not slow.is_aborted


def test_this_process_may_open_as_many_files_as_connections_need():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (700, before[1]))
    allow_descriptors(500)
    raised = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert raised == (500 + 512, before[1])
