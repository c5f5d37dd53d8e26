"""`POST /v1/chat/completions`: whole answers, streams, and everything a body can ask for."""

import pytest

from sampler import DecodingMode, Delta, FinishReason, TokenKind, TokenTrace
from tests.server.conftest import error_of, events
from tests.server.scripted_engine import EOS, ScriptedEngine, saying, stats

pytestmark = pytest.mark.anyio


async def test_a_whole_answer_has_every_field_of_the_api(serve):
    async with serve(ScriptedEngine(saying("hello"))) as served:
        response = await served.chat(max_tokens=20)
    body = response.json()
    assert response.status_code == 200
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    assert body["system_fingerprint"].startswith("fp_")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"]["prompt_tokens"] == len("<user>hi\n<assistant>")
    assert body["usage"]["completion_tokens"] == 6
    assert body["usage"]["total_tokens"] == 6 + len("<user>hi\n<assistant>")
    assert body["usage"]["decoding"]["forward_passes"] == 6


async def test_the_template_writes_the_prompt(serve):
    async with serve() as served:
        await served.chat(
            messages=[
                {"role": "developer", "content": "be kind"},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                },
            ]
        )
    assert bytes(served.engine.submitted[0].prompt) == b"<system>be kind\n<user>a\nb\n<assistant>"


async def test_without_max_tokens_the_answer_may_fill_the_context(serve):
    async with serve() as served:
        await served.chat()
    request = served.engine.submitted[0]
    assert request.params.max_tokens == 512 - len(request.prompt)


async def test_max_completion_tokens_wins(serve):
    async with serve() as served:
        await served.chat(max_tokens=3, max_completion_tokens=5)
    assert served.engine.submitted[0].params.max_tokens == 5


async def test_every_sampling_field_reaches_the_engine(serve):
    async with serve() as served:
        response = await served.chat(
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            min_p=0.1,
            seed=7,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            repetition_penalty=1.1,
            logit_bias={"5": 2, "6": -100},
            stop_token_ids=[65],
            ignore_eos=True,
            min_tokens=2,
            max_tokens=9,
            allowed_token_ids=[1, 2, 3],
            priority=3,
            logprobs=True,
            top_logprobs=2,
            prompt_logprobs=1,
        )
    params = served.engine.submitted[0].params
    assert response.status_code == 200
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 40, 0.1)
    assert (params.seed, params.max_tokens, params.min_tokens) == (7, 9, 2)
    assert (params.presence_penalty, params.frequency_penalty) == (0.5, -0.5)
    assert params.repetition_penalty == 1.1
    assert params.logit_bias == ((5, 2.0), (6, -100.0))
    assert params.stop_token_ids == (65,)
    assert params.ignore_eos
    assert params.allowed_token_ids == (1, 2, 3)
    assert (params.logprobs, params.prompt_logprobs) == (2, 1)
    assert served.engine.submitted[0].priority == 3


async def test_null_stands_for_the_default(serve):
    names = ("temperature", "top_p", "n", "stop", "seed", "logit_bias", "stream", "max_tokens",
             "stream_options", "decoding", "tools", "response_format", "user")  # fmt: skip
    async with serve() as served:
        response = await served.chat(**dict.fromkeys(names))
    assert response.status_code == 200
    assert "x-estuary-ignored-params" not in response.headers


async def test_n_answers_are_n_requests_with_seeds_of_their_own(serve):
    async with serve(ScriptedEngine(saying("ok"))) as served:
        response = await served.chat(n=3, seed=10)
    body = response.json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [request.params.seed for request in served.engine.submitted] == [10, 11, 12]
    assert body["usage"]["prompt_tokens"] == len(served.engine.submitted[0].prompt)
    assert body["usage"]["completion_tokens"] == 9


async def test_a_stream_names_the_role_then_the_text_then_the_end(serve):
    async with serve(ScriptedEngine(saying("hey"))) as served:
        response = await served.chat(stream=True)
    chunks = events(response)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "h"},
        {"content": "e"},
        {"content": "y"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)


async def test_include_usage_adds_one_chunk_without_choices(serve):
    async with serve(ScriptedEngine(saying("hey"))) as served:
        response = await served.chat(stream=True, stream_options={"include_usage": True})
    chunks = events(response)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 4
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


async def test_continuous_usage_counts_up(serve):
    async with serve(ScriptedEngine(saying("hey"))) as served:
        response = await served.chat(stream=True, stream_options={"continuous_usage_stats": True})
    counts = [chunk["usage"]["completion_tokens"] for chunk in events(response)]
    assert counts == sorted(counts)
    assert counts[-1] == 4


async def test_a_stream_of_several_answers_tells_them_apart(serve):
    async with serve(ScriptedEngine(saying("ab"))) as served:
        response = await served.chat(stream=True, n=2)
    texts = {0: "", 1: ""}
    for chunk in events(response):
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: "ab", 1: "ab"}


async def test_logprobs_name_token_bytes_and_alternatives(serve):
    async with serve(ScriptedEngine(saying("é"))) as served:
        response = await served.chat(logprobs=True, top_logprobs=2)
    content = response.json()["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9]]
    assert content[0]["token"] == "\ufffd"
    assert content[0]["logprob"] == pytest.approx(-0.5 - 0xC3 / 1000)
    assert [top["bytes"] for top in content[0]["top_logprobs"]] == [[0xC3], [0xC4]]


async def test_streamed_logprobs_are_those_of_the_whole(serve):
    async with serve(ScriptedEngine(saying("naïve", cut=2))) as served:
        whole = await served.chat(logprobs=True, top_logprobs=1)
        streamed = await served.chat(logprobs=True, top_logprobs=1, stream=True)
    entries = []
    for chunk in events(streamed):
        entries += (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    assert entries == whole.json()["choices"][0]["logprobs"]["content"]


async def test_a_stop_string_ends_the_answer_and_the_request(serve):
    async with serve(ScriptedEngine(saying("one. two."))) as served:
        response = await served.chat(stop=". t")
    choice = response.json()["choices"][0]
    assert choice["message"]["content"] == "one"
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == ". t"
    assert response.json()["usage"]["completion_tokens"] == len("one. t")
    assert response.json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    assert response.json()["usage"]["decoding"]["forward_passes"] == len("one. t")
    assert served.engine.ended_early == [served.engine.submitted[0].id]
    assert served.engine.num_open == 0


async def test_a_stop_token_that_is_not_end_of_text_is_named(serve):
    def script(request):
        return [
            Delta(
                request.id,
                token_ids=(65, 66),
                finish=FinishReason.STOP,
                stop_token_id=66,
                stats=stats(request, 2),
            )
        ]

    async with serve(ScriptedEngine(script)) as served:
        response = await served.chat(stop_token_ids=[66])
        with_stop = await served.chat(stop_token_ids=[66], include_stop_str_in_output=True)
    assert response.json()["choices"][0]["message"]["content"] == "A"
    assert response.json()["choices"][0]["stop_reason"] == 66
    assert with_stop.json()["choices"][0]["message"]["content"] == "AB"


async def test_the_limit_is_a_finish_reason(serve):
    async with serve(ScriptedEngine(saying("hello"))) as served:
        response = await served.chat(max_tokens=2)
    assert response.json()["choices"][0]["finish_reason"] == "length"
    assert response.json()["choices"][0]["message"]["content"] == "he"


async def test_token_ids_are_reported_when_asked_for(serve):
    async with serve(ScriptedEngine(saying("hi"))) as served:
        whole = (await served.chat(return_token_ids=True)).json()
        chunks = events(await served.chat(return_token_ids=True, stream=True))
    assert whole["choices"][0]["token_ids"] == [104, 105]
    assert whole["prompt_token_ids"] == list(served.engine.submitted[0].prompt)
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert [chunk["choices"][0].get("token_ids") for chunk in chunks[1:3]] == [[104], [105]]


async def test_special_tokens_are_shown_when_asked_for(serve):
    def script(request):
        return [Delta(request.id, (72, EOS, 73), finish=FinishReason.LENGTH)]

    async with serve(ScriptedEngine(script)) as served:
        hidden = await served.chat()
        shown = await served.chat(skip_special_tokens=False)
    assert hidden.json()["choices"][0]["message"]["content"] == "HI"
    assert shown.json()["choices"][0]["message"]["content"] == "H<eos>I"


def _traced(request):
    return [
        Delta(
            request.id,
            token_ids=(72, 73),
            trace=(
                TokenTrace(0, TokenKind.DIFFUSION, 0.25),
                TokenTrace(1, TokenKind.AR, 0.5),
            ),
            finish=FinishReason.LENGTH,
            stats=stats(request, 2, ar_tokens=1, diffusion_tokens=1, revised_tokens=3),
        )
    ]


async def test_a_trace_tells_how_each_token_came(serve):
    engine = ScriptedEngine(_traced, modes=("ar", "diffusion"))
    async with serve(engine) as served:
        decoding = {"mode": "diffusion", "width": 8, "trace": True, "confidence": 0.9}
        whole = (await served.chat(decoding=decoding)).json()
        chunks = events(await served.chat(decoding=decoding, stream=True))
    tokens = [
        {"token_id": 72, "text": "H", "step": 0, "kind": "diffusion", "uncertainty": 0.25},
        {"token_id": 73, "text": "I", "step": 1, "kind": "ar", "uncertainty": 0.5},
    ]
    asked = engine.submitted[0].params.decoding
    assert whole["choices"][0]["decoding"] == tokens
    assert chunks[1]["decoding"] == {"v": 1, "index": 0, "tokens": tokens}
    assert whole["usage"]["decoding"]["revised_tokens"] == 3
    assert (asked.mode, asked.width, asked.confidence) == (DecodingMode.DIFFUSION, 8, 0.9)


async def test_continuing_the_final_message_ends_the_prompt_with_it(serve):
    async with serve() as served:
        response = await served.chat(
            messages=[
                {"role": "user", "content": "count"},
                {"role": "assistant", "content": "one, two,"},
            ],
            continue_final_message=True,
            add_generation_prompt=False,
        )
    assert response.status_code == 200
    assert bytes(served.engine.submitted[0].prompt).endswith(b"<assistant>one, two,")


async def test_a_long_prompt_is_cut_only_when_asked(serve):
    long = [{"role": "user", "content": "x" * 600}]
    async with serve() as served:
        refused = await served.chat(messages=long)
        cut = await served.chat(messages=long, truncate_prompt_tokens=20, max_tokens=5)
    assert error_of(refused)["code"] == "context_length_exceeded"
    assert cut.status_code == 200
    assert len(served.engine.submitted[0].prompt) == 20


async def test_a_served_name_stands_in_the_answer(serve):
    async with serve(served_model_name=["a", "b/c"]) as served:
        first = await served.chat()
        second = await served.chat(model="b/c")
        other = await served.chat(model="tiny")
    assert first.json()["model"] == "a"
    assert second.json()["model"] == "b/c"
    assert other.status_code == 404
    assert error_of(other)["code"] == "model_not_found"
    assert error_of(other)["param"] == "model"


async def test_unknown_fields_are_named_and_counted(serve):
    async with serve() as served:
        response = await served.chat(mirostat=2, foo=1, user="me", metadata={"a": "b"})
        metrics = (await served.client.get("/metrics")).text
    assert response.headers["x-estuary-ignored-params"] == "mirostat, foo"
    assert 'estuary_request_params_ignored_total{model_name="tiny",param="mirostat"} 1.0' in metrics
    assert 'estuary_request_params_ignored_total{model_name="tiny",param="other"} 1.0' in metrics


async def test_unknown_fields_are_refused_with_strict_params(serve):
    async with serve(strict_params=True) as served:
        response = await served.chat(foo=1)
    assert response.status_code == 400
    assert error_of(response)["param"] == "foo"
    assert error_of(response)["code"] == "unknown_parameter"
