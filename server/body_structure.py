"""How much there is in a JSON body, counted before it is parsed.

A parser holds the interpreter from its first byte to its last, and with it every stream of the
process: a string of 4 MB takes it a millisecond, 4 MB of empty lists take a second.
"""

import re

from server.error_responses import ApiError, ErrorAnswer

# With these a body takes a parser at most about a tenth of a second.
MAX_STRINGS = 65_536
MAX_ITEMS = 524_288
MAX_MEMBERS = 32_768

# Possessive, so that no text makes the search go back; also matches a string without an end.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


def check_structure(raw: bytes, *, max_items: int = MAX_ITEMS) -> None:
    """Raise ApiError for a body of more than `max_items` values, or of too many objects and lists.

    What looks like structure inside strings does not count.
    """
    if _num_members(raw) <= MAX_MEMBERS and raw.count(b",") < max_items:
        return
    outside, num_strings = _STRING.subn(b"", raw, count=MAX_STRINGS + 1)
    if num_strings > MAX_STRINGS:
        raise _too_many("strings", MAX_STRINGS)
    if _num_members(outside) > MAX_MEMBERS:
        raise _too_many("objects, lists and fields", MAX_MEMBERS)
    if outside.count(b",") >= max_items:
        raise _too_many("values", max_items)


def _num_members(raw: bytes) -> int:
    return raw.count(b"{") + raw.count(b"[") + raw.count(b":")


def _too_many(what: str, limit: int) -> ApiError:
    return ApiError(
        ErrorAnswer(
            413,
            "invalid_request_error",
            "body_too_large",
            f"the body may have at most {limit} {what}",
        )
    )
