import json
import time

import pytest

from server.body_structure import MAX_ITEMS, MAX_MEMBERS, MAX_STRINGS, check_structure
from server.error_responses import ApiError

SIZE = 4 * 2**20


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps({"prompt": "a, b: [c] {d} " * (SIZE // 14)}).encode(),
        json.dumps({"prompt": json.dumps({"a": ["b", {"c": "d"}]}) * (SIZE // 60)}).encode(),
        json.dumps({"prompt": '\\"' * (SIZE // 8)}).encode(),
        b'{"prompt":[' + b"1," * (MAX_ITEMS - 2) + b"1]}",
    ],
    ids=["text", "JSON in a string", "escapes", "token ids"],
)
def test_a_large_body_of_few_parts_is_taken(raw):
    check_structure(raw)


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b'{"prompt":[' + b"1," * MAX_ITEMS + b"1]}", f"{MAX_ITEMS} values"),
        (b'{"x":[' + b"[]," * MAX_MEMBERS + b"[]]}", f"{MAX_MEMBERS} objects"),
        (b'{"x":[' + b"{}," * MAX_MEMBERS + b"{}]}", f"{MAX_MEMBERS} objects"),
        (b'{"x":[' + b'"a",' * MAX_ITEMS + b'"a"]}', f"{MAX_STRINGS} strings"),
        (b"{" + b'"a":1,' * MAX_ITEMS + b'"a":1}', f"{MAX_STRINGS} strings"),
    ],
    ids=["values", "lists", "objects", "strings", "fields"],
)
def test_a_body_that_would_hold_everybody_up_is_refused(raw, what):
    with pytest.raises(ApiError) as refused:
        check_structure(raw)
    assert refused.value.answer.status == 413
    assert what in refused.value.answer.message


def test_a_string_without_an_end_costs_no_more_than_one_with():
    started_s = time.thread_time()
    check_structure(b'{"a":"' + b'\\":' * (SIZE // 3))
    assert time.thread_time() - started_s < 1.0
