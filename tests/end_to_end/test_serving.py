"""The whole of it over HTTP: real processes, a real network, real pages."""

import concurrent.futures
import json
import os
import signal
import subprocess

import pytest

from tests.end_to_end.conftest import WAITS_S, serving, write_checkpoint

PROMPT = "To be, or not"
FREE = {"max_tokens": 24, "ignore_eos": True}
GREEDY = FREE | {"temperature": 0}


def _text(chunks):
    return "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])


def _children(process):
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    return [int(pid) for pid in listed.stdout.split()]


def test_a_stream_concatenates_to_the_whole(llama):
    whole = llama.complete(PROMPT, **FREE, seed=5, logprobs=2)
    chunks = llama.stream(PROMPT, **FREE, seed=5, logprobs=2)
    assert _text(chunks) == whole["choices"][0]["text"]
    assert whole["usage"]["completion_tokens"] == 24


def test_a_request_says_the_same_alone_and_among_others(llama):
    alone = [llama.complete(PROMPT[:length], **FREE, seed=length) for length in range(1, 13)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(
            pool.map(
                lambda length: llama.complete(PROMPT[:length], **FREE, seed=length), range(1, 13)
            )
        )
    assert [each["choices"] for each in together] == [each["choices"] for each in alone]


def test_what_was_said_is_scored_as_it_was_said(llama):
    said = llama.complete(PROMPT, **GREEDY, logprobs=1, return_token_ids=True)["choices"][0]
    token_ids = said["prompt_token_ids"] + said["token_ids"]
    scored = llama.complete(token_ids, max_tokens=0, echo=True, logprobs=1)["choices"][0]
    assert scored["logprobs"]["token_logprobs"][-24:] == pytest.approx(
        said["logprobs"]["token_logprobs"], abs=1e-4
    )


def test_a_prompt_that_was_seen_is_found_in_the_cache(llama):
    long = "The quality of mercy is not strain'd, it droppeth as the gentle rain"
    first = llama.complete(long, **GREEDY)
    second = llama.complete(long, **GREEDY)
    assert second["choices"] == first["choices"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 48


def test_a_stop_string_ends_the_request_and_frees_its_pages(llama):
    whole = llama.complete(PROMPT, **GREEDY)["choices"][0]["text"]
    stop = whole[10:12]
    answer = llama.complete(PROMPT, **GREEDY, stop=[stop])
    assert answer["choices"][0]["text"] == whole[: whole.index(stop)]
    assert answer["usage"]["decoding"]["forward_passes"] > 0
    llama.wait_until_idle()


def test_chat_goes_through_the_template(llama):
    messages = [{"role": "user", "content": "hi"}]
    chat = llama.client.post("/v1/chat/completions", json={"messages": messages} | GREEDY).json()
    raw = llama.complete("u:hi;", **GREEDY)
    assert chat["choices"][0]["message"]["content"] == raw["choices"][0]["text"]


def test_a_grammar_holds_the_answer(llama):
    answer = llama.complete(
        PROMPT, max_tokens=40, seed=1, structured_outputs={"regex": "[a-f]{3}-[0-9]{4}"}
    )
    text = answer["choices"][0]["text"]
    assert len(text) == 8
    assert text[3] == "-"
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_client_that_leaves_frees_its_pages(llama):
    body = {"prompt": PROMPT, "stream": True, "max_tokens": 200, "ignore_eos": True}
    for _ in range(20):
        with llama.client.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
    llama.wait_until_idle()
    assert llama.complete(PROMPT, **GREEDY)["choices"][0]["text"]


def test_more_than_the_cache_holds_is_done_one_after_another(llama):
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        fields = {"max_tokens": 150, "ignore_eos": True, "temperature": 0}
        answers = list(
            pool.map(lambda number: llama.complete(f"{number} {PROMPT}", **fields), range(24))
        )
    assert {answer["usage"]["completion_tokens"] for answer in answers} == {150}
    llama.wait_until_idle()


def test_drafts_that_are_verified_say_what_one_by_one_says(hybrid):
    fields = {"max_tokens": 32, "ignore_eos": True, "seed": 3}
    one_by_one = hybrid.complete(PROMPT, **fields, decoding={"mode": "ar"})
    decoding = {"mode": "speculative", "width": 8}
    verified = hybrid.complete(PROMPT, **fields, decoding=decoding)
    assert verified["choices"][0]["text"] == one_by_one["choices"][0]["text"]
    assert verified["usage"]["decoding"]["verified_tokens"] > 0
    assert one_by_one["usage"]["decoding"]["ar_tokens"] == 32


def test_diffusion_takes_fewer_steps_and_says_how_each_token_came(hybrid):
    decoding = {"mode": "diffusion", "trace": True, "confidence": 0.05}
    answer = hybrid.complete(PROMPT, **GREEDY, decoding=decoding)
    usage, trace = answer["usage"]["decoding"], answer["choices"][0]["decoding"]
    assert usage["diffusion_tokens"] > 0
    assert usage["forward_passes"] < 24
    assert len(trace) == 24
    assert "diffusion" in {token["kind"] for token in trace}


def test_the_canvas_is_streamed_as_it_develops(hybrid):
    decoding = {"mode": "diffusion", "stream": "steps"}
    plain = hybrid.complete(PROMPT, **GREEDY, decoding={"mode": "diffusion"})
    chunks = hybrid.stream(PROMPT, **GREEDY, decoding=decoding)
    frames = [chunk["decoding"]["frame"] for chunk in chunks if "decoding" in chunk]
    assert _text(chunks) == plain["choices"][0]["text"]
    assert frames
    assert [frame["step"] for frame in frames] == sorted({frame["step"] for frame in frames})
    assert all(
        frame["base"] <= entry[0] < frame["base"] + frame["length"]
        for frame in frames
        for entry in frame["set"]
    )


@pytest.mark.parametrize("mode", ["ar", "diffusion", "speculative"])
def test_a_schema_holds_in_every_mode(hybrid, mode):
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    answer = hybrid.complete(
        "q",
        max_tokens=100,
        seed=2,
        decoding={"mode": mode},
        response_format={"type": "json_schema", "json_schema": {"name": "t", "schema": schema}},
    )
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert set(json.loads(answer["choices"][0]["text"])) == {"a", "b"}


@pytest.mark.parametrize(
    ("decoding", "param"),
    [({"rule": "wishful"}, "decoding.rule"), ({"remask": 0.5}, "decoding.remask")],
)
def test_what_the_family_cannot_do_is_refused_by_name(llama, hybrid, decoding, param):
    for server in (llama, hybrid):
        answer = server.client.post("/v1/completions", json={"prompt": "a", "decoding": decoding})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param


def test_a_killed_engine_ends_its_streams_and_the_server(golden, tmp_path):
    with serving(write_checkpoint(golden, "llama", tmp_path)) as server:
        body = {"prompt": PROMPT, "stream": True, "max_tokens": 200, "ignore_eos": True}
        with server.client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            for child in _children(server.process):
                os.kill(child, signal.SIGKILL)
            said = [line for line in lines if line]
        server.process.wait(WAITS_S)
    assert json.loads(said[-2].removeprefix("data: "))["error"]["code"] == "engine_dead"
    assert said[-1] == "data: [DONE]"
    assert server.process.returncode == 1


def test_a_broken_checkpoint_is_refused_in_one_sentence(golden, tmp_path):
    folder = write_checkpoint(golden, "llama", tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(RuntimeError) as refused, serving(folder, "--log-format", "console"):
        pass
    assert "Traceback" not in str(refused.value)
    assert "model.safetensors" in str(refused.value)
