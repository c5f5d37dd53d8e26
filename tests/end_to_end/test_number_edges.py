"""Every number of a body at the edges of its range, two at a time, on the real engine: no request
ends in a fault of the server, and the engine is alive afterwards."""

import concurrent.futures
import json
import math
import random

import httpx
import pytest

from server.schema.chat import ChatBody
from server.schema.common import DecodingBody, EvoBody
from server.schema.completions import CompletionBody
from tests.end_to_end.conftest import NUM_TOKENS, WAITS_S, serving, write_checkpoint

# What takes longer than it may is answered with 504, which is right.
LEFT_OUT = {"timeout"}
ANYWHERE = [
    0.0, -0.0, 1.0, 5e-324, 1e-60, 1e-46, 7.1e-46, 1e-45, 1.1754943508222875e-38, 1e-38,
    1.401298464324817e-45, 0.5, 1 - 2**-53, 1 - 2**-24, 1 + 2**-52, 3.4028234663852886e38,
    3.5e38, 1.7976931348623157e308, -5e-324, -1e-46, -1.0, 0, 1, -1, 2**31 - 1, 2**31, 2**53 + 1,
    2**63 - 1, -(2**63), 2**64, 10**400,
]  # fmt: skip
KEYS = ["0", "00", "0" * 21 + "77", "0" * 5000, "127", "0127", "128", "0" * 12 + "9" * 30, "-0",
        "1e2", "\uff19", ""]  # fmt: skip


def _bounds(metadata):
    """(smallest, largest) that a field says it allows."""
    low, high = -math.inf, math.inf
    for one in metadata:
        low = max(low, getattr(one, "ge", low), getattr(one, "gt", low))
        high = min(high, getattr(one, "le", high), getattr(one, "lt", high))
    return low, high


def _edges(field):
    """(values within the bounds of a field, values beyond), at their edges and at any number's."""
    bounds = _bounds(field.metadata)
    edges = list(ANYWHERE)
    for bound in bounds:
        if math.isfinite(bound):
            edges += [bound, bound - 1, bound + 1, -bound]
        if abs(bound) < 1e300:
            edges += [math.nextafter(bound, -math.inf), math.nextafter(bound, math.inf)]
    if "int" in str(field.annotation):
        edges = [int(edge) if isinstance(edge, float) and edge.is_integer() else edge
                 for edge in edges if isinstance(edge, int) or abs(edge) >= 1]  # fmt: skip
    within = [edge for edge in edges if bounds[0] <= edge <= bounds[1]]
    return within, [edge for edge in edges if edge not in within]


def _numbers(model, path=()):
    """(path, edges) of every numeric field of a body."""
    for name, field in model.model_fields.items():
        kinds = str(field.annotation)
        is_number = "float" in kinds or "int" in kinds.replace("Constraint", "")
        if name not in LEFT_OUT and is_number and "list" not in kinds and "Mapping" not in kinds:
            yield (*path, field.alias or name), _edges(field)


def _fields(model):
    decoding = [*_numbers(DecodingBody, ("decoding",)), *_numbers(EvoBody, ("decoding", "evo"))]
    return [*_numbers(model), *decoding, (("logit_bias",), None), (("mode",), None)]


def _put(body, path, value):
    for name in path[:-1]:
        body = body.setdefault(name, {})
    body[path[-1]] = value


def _draw(draw, fields, body):
    plain = [one for one in fields if one[0][0] != "decoding"]
    for path, edges in draw.sample(plain if draw.random() < 0.6 else fields, 2):
        if path == ("logit_bias",):
            keys = KEYS[:6] if draw.random() < 0.9 else KEYS
            values = [-100, 100, -0.0, 5e-324, 1e-46, 0.5, -1e-45]
            value = {draw.choice(keys): draw.choice(values)}
        elif path == ("mode",):
            modes = ["ar", "diffusion", "speculative", "auto"]
            path, value = ("decoding", "mode"), draw.choice(modes)
        else:
            within, beyond = edges
            value = draw.choice(within if draw.random() < 0.9 or not beyond else beyond)
        _put(body, path, value)
    # A temperature of 0, which is the tiny models' default nowhere, would leave filters unused.
    body.setdefault("temperature", draw.choice([0, 1, 1, 2]))
    return body


def _bodies(count, seed):
    draw = random.Random(seed)
    routes = [
        ("/v1/completions", _fields(CompletionBody), {"prompt": "the sea", "max_tokens": 4}),
        (
            "/v1/chat/completions",
            _fields(ChatBody),
            {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
        ),
    ]
    for _ in range(count):
        route, fields, body = draw.choice(routes)
        yield route, json.dumps(_draw(draw, fields, dict(body)))


@pytest.fixture(scope="module", params=["llama", "nemotron_labs_diffusion"])
def server(request, golden, tmp_path_factory):
    folder = write_checkpoint(golden, request.param, tmp_path_factory.mktemp("edges"))
    with serving(folder, "--max-num-seqs", "64", "--max-queued-requests", "4096") as running:
        yield running


def test_all_kinds_of_numbers_are_found():
    assert NUM_TOKENS == 128, "the keys above are around it"
    paths = {".".join(path) for path, _ in _fields(CompletionBody)}
    wanted = {"top_p", "temperature", "seed", "min_p", "top_k", "repetition_penalty", "n",
              "decoding.confidence", "decoding.steps", "decoding.evo.t_ar"}  # fmt: skip
    assert wanted <= paths
    assert len(paths) > 40


SOAK = (pytest.mark.soak, pytest.mark.timeout(7200))


@pytest.mark.parametrize("count", [250, pytest.param(10_000, marks=SOAK)])
def test_no_pair_of_edges_is_a_fault_of_the_server(server, count):
    client = httpx.Client(base_url=server.address, timeout=WAITS_S)

    def ask(one):
        route, content = one
        headers = {"content-type": "application/json"}
        answer = client.post(route, content=content, headers=headers)
        return answer.status_code, content, answer.text

    with client, concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, _bodies(count, seed=count)))
    faults = [one for one in answers if one[0] >= 500]
    assert not faults, faults[:5]
    statuses = [status for status, _, _ in answers]
    assert 0.1 < statuses.count(200) / count < 0.95
    server.wait_until_idle()
    assert server.metric("estuary_steps_taken_back") == 0
    assert server.complete("the sea", max_tokens=3)["usage"]["completion_tokens"] == 3
