"""The default model over HTTP: three ways to decode, one set of answers where it must be one."""

import concurrent.futures
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.end_to_end.conftest import serving_by
from weights.files.default_model import default_model_path

CACHE = Path(os.environ.get("ESTUARY_CACHE_DIR", Path.home() / ".cache" / "estuary"))
pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        not default_model_path(CACHE).is_file(), reason="needs the default model (make model)"
    ),
]
QUESTIONS = (
    "What is an estuary?",
    "Write a Python function that adds two numbers.",
    "Tom has 3 apples and buys 4 more. How many apples has he?",
    "Name three rivers.",
)
VERIFIED = (
    {"mode": "speculative", "width": 3},
    {"mode": "speculative", "width": 5, "branches": "full"},
    {"mode": "speculative", "width": 4, "drafts": "canvas"},
    {"mode": "speculative", "drafts": "ngram"},
    {},
)


@pytest.fixture(scope="module")
def default_model():
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--device", "cpu",
               "--num-threads", "1", "--kv-cache-memory", "256MiB", "--max-model-len", "512",
               "--drain-grace", "0"]  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        running = serving_by(command, log)
        yield next(running)
        next(running, None)


def ask(server, question, decoding, **fields):
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 40,
        "decoding": decoding,
        **fields,
    }
    answer = server.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return found["choices"][0]["message"]["content"], found["usage"]["decoding"]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_verified_drafts_say_what_the_base_says(default_model, temperature):
    fields = {"temperature": temperature, "seed": 7}
    passes, verified = 0, 0
    for question in QUESTIONS:
        wanted, alone = ask(default_model, question, {"mode": "ar"}, **fields)
        with concurrent.futures.ThreadPoolExecutor(len(VERIFIED)) as pool:
            found = list(
                pool.map(lambda d, q=question: ask(default_model, q, d, **fields), VERIFIED)
            )
        assert {text for text, _ in found} == {wanted}
        passes += alone["forward_passes"] - found[0][1]["forward_passes"]
        verified += found[0][1]["verified_tokens"]
    assert passes > 0
    assert verified > 0


def test_the_canvas_decides_in_fewer_forwards(default_model):
    evo = {"finalize_uncertainty": 0.3, "jump_uncertainty": 0.2}
    decoding = {"mode": "diffusion", "width": 6, "evo": evo}
    text, usage = ask(default_model, QUESTIONS[0], decoding, temperature=0.0)
    assert text
    assert usage["diffusion_tokens"] > 0
    assert usage["forward_passes"] < usage["diffusion_tokens"] + usage["ar_tokens"]
    again, _ = ask(default_model, QUESTIONS[0], decoding, temperature=0.0)
    assert again == text


RIVER = {
    "type": "object",
    "properties": {
        "river_name": {"enum": ["Rhine", "Nile"]},
        "length_in_kilometres": {"type": "integer", "minimum": 1, "maximum": 9999},
        "is_navigable": {"type": "boolean"},
    },
    "required": ["river_name", "length_in_kilometres", "is_navigable"],
    "additionalProperties": False,
}


def test_what_a_schema_forces_costs_the_canvas_no_forward(default_model):
    held = {"type": "json_schema", "json_schema": {"name": "river", "schema": RIVER}}
    fields = {"temperature": 0.0, "max_tokens": 80, "response_format": held}
    text, usage = ask(default_model, "Describe a river.", {"mode": "diffusion"}, **fields)
    num_tokens = usage["ar_tokens"] + usage["diffusion_tokens"]
    assert set(json.loads(text)) == set(RIVER["properties"])
    assert default_model.metric("estuary_forced_tokens_total") >= 10
    assert usage["forward_passes"] <= num_tokens - 10


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_canvas_that_trusts_no_draft_says_what_the_base_says(default_model, temperature):
    fields = {"temperature": temperature, "seed": 7}
    strict = {"mode": "diffusion", "evo": {"jump_uncertainty": 0.0}}
    for question in QUESTIONS:
        wanted, _ = ask(default_model, question, {"mode": "ar"}, **fields)
        found, usage = ask(default_model, question, strict, **fields)
        assert found == wanted
        assert usage["diffusion_tokens"] == 0


@pytest.mark.parametrize(
    ("decoding", "param"),
    [
        ({"evo": {"delta_min": 0.5, "delta_max": 0.1}}, "decoding.evo.delta_min"),
        ({"evo": {"hysteresis": 0.1}}, "decoding.evo.hysteresis"),
        ({"evo": {"delta_min": 2.0}}, "decoding.evo.delta_min"),
        ({"mode": "speculative", "width": 17}, "decoding.width"),
        ({"mode": "diffusion", "width": 65}, "decoding.width"),
        ({"branches": "some"}, "decoding.branches"),
    ],
)
def test_knobs_that_cannot_be_are_refused_by_name(default_model, decoding, param):
    body = {"messages": [{"role": "user", "content": "hi"}], "decoding": decoding}
    answer = default_model.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
