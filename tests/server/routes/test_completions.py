"""`POST /v1/completions`: prompts of every kind, echo, logprobs, n and best_of."""

import pytest

from sampler import Delta, FinishReason, TokenLogprob
from tests.server.conftest import error_of, events
from tests.server.scripted_engine import BOS, ScriptedEngine, logprob, saying, stats

pytestmark = pytest.mark.anyio


async def test_a_whole_answer_has_every_field_of_the_api(serve):
    async with serve(ScriptedEngine(saying("xyz"))) as served:
        body = (await served.complete()).json()
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {"index": 0, "text": "xyz", "logprobs": None, "finish_reason": "stop"}
    ]
    assert body["usage"]["prompt_tokens"] == 2
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_sixteen_tokens_are_the_default(serve):
    async with serve() as served:
        await served.complete()
    assert served.engine.submitted[0].params.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [(97, 98)]),
        (["a", "b"], [(97,), (98,)]),
        ([97, 98], [(97, 98)]),
        ([[97], [98, BOS]], [(97,), (98, BOS)]),
        (["a", [98]], [(97,), (98,)]),
    ],
)
async def test_a_prompt_is_text_or_tokens_one_or_many(serve, prompt, expected):
    async with serve() as served:
        response = await served.complete(prompt=prompt)
    assert [request.prompt for request in served.engine.submitted] == expected
    assert [choice["index"] for choice in response.json()["choices"]] == list(range(len(expected)))


async def test_choices_are_counted_prompt_by_prompt(serve):
    def script(request):
        return saying(bytes(request.prompt).decode().upper())(request)

    async with serve(ScriptedEngine(script)) as served:
        body = (await served.complete(prompt=["a", "b"], n=2)).json()
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [
        (0, "A"),
        (1, "A"),
        (2, "B"),
        (3, "B"),
    ]
    assert body["usage"]["prompt_tokens"] == 2


async def test_a_stream_concatenates_to_the_whole(serve):
    async with serve(ScriptedEngine(saying("größer", cut=3))) as served:
        chunks = events(await served.complete(stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "größer"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_logprobs_are_parallel_lists(serve):
    async with serve(ScriptedEngine(saying("hi"))) as served:
        body = (await served.complete(logprobs=2)).json()
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["h", "i"]
    assert logprobs["text_offset"] == [0, 1]
    assert logprobs["token_logprobs"] == pytest.approx([-0.604, -0.605])
    assert logprobs["top_logprobs"][0] == pytest.approx({"h": -0.604, "i": -1.5})


async def test_logprobs_of_zero_give_no_alternatives(serve):
    async with serve(ScriptedEngine(saying("hi"))) as served:
        body = (await served.complete(logprobs=0)).json()
    assert body["choices"][0]["logprobs"]["top_logprobs"] is None
    assert len(body["choices"][0]["logprobs"]["token_logprobs"]) == 2


async def test_an_impossible_token_has_the_lowest_logprob(serve):
    def script(request):
        return [
            Delta(
                request.id,
                (65,),
                logprobs=(TokenLogprob(65, float("-inf")),),
                finish=FinishReason.LENGTH,
            )
        ]

    async with serve(ScriptedEngine(script)) as served:
        body = (await served.complete(logprobs=0)).json()
    assert body["choices"][0]["logprobs"]["token_logprobs"] == [-9999.0]


def _scoring(request):
    text = "!" * request.params.max_tokens
    answer = saying(text, cut=100, finish=FinishReason.LENGTH)(request)[0]
    entries = ()
    if request.params.prompt_logprobs is not None:
        entries = tuple(
            logprob(token_id, request.params.prompt_logprobs) for token_id in request.prompt[1:]
        )
    return [
        Delta(
            request.id,
            token_ids=answer.token_ids,
            logprobs=answer.logprobs,
            prompt_logprobs=entries,
            finish=FinishReason.LENGTH,
            stats=stats(request, len(answer.token_ids)),
        )
    ]


@pytest.mark.parametrize("prompt", ["abc", [97, 98, 99]])
async def test_echo_puts_the_prompt_before_the_answer(serve, prompt):
    async with serve(ScriptedEngine(_scoring)) as served:
        whole = (await served.complete(prompt=prompt, echo=True, max_tokens=2)).json()
        chunks = events(await served.complete(prompt=prompt, echo=True, max_tokens=2, stream=True))
    assert whole["choices"][0]["text"] == "abc!!"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "abc!!"


async def test_echo_with_logprobs_scores_the_prompt(serve):
    async with serve(ScriptedEngine(_scoring)) as served:
        body = (await served.complete(prompt="abc", echo=True, logprobs=1, max_tokens=0)).json()
    choice = body["choices"][0]
    assert choice["text"] == "abc"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]
    assert choice["logprobs"]["token_logprobs"] == [
        None,
        pytest.approx(-0.598),
        pytest.approx(-0.599),
    ]
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert body["usage"]["completion_tokens"] == 0


async def test_echo_with_logprobs_streams_the_same(serve):
    fields = {"prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 2}
    async with serve(ScriptedEngine(_scoring)) as served:
        whole = (await served.complete(**fields)).json()["choices"][0]
        chunks = events(await served.complete(**fields, stream=True))
    merged = {"tokens": [], "token_logprobs": [], "text_offset": [], "top_logprobs": []}
    for chunk in chunks:
        for name, values in (chunk["choices"][0]["logprobs"] or {}).items():
            merged[name] += values
    assert merged == whole["logprobs"]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"] == "abc!!"
    assert whole["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]


async def test_prompt_logprobs_name_each_token(serve):
    async with serve(ScriptedEngine(_scoring)) as served:
        body = (await served.complete(prompt="ab", prompt_logprobs=1)).json()
    assert body["choices"][0]["prompt_logprobs"] == [
        None,
        {"98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"}},
    ]


async def test_best_of_answers_with_the_likeliest(serve):
    def script(request):
        letter = "abc"[int(request.id.rpartition("-")[2])]
        return saying(letter * 3)(request)

    async with serve(ScriptedEngine(script)) as served:
        body = (await served.complete(best_of=3, n=1)).json()
    assert [choice["text"] for choice in body["choices"]] == ["aaa"]
    assert body["choices"][0]["logprobs"] is None
    assert body["usage"]["completion_tokens"] == 12


async def test_a_suffix_goes_to_a_model_that_infills(serve):
    async with serve(ScriptedEngine(can_infill=True)) as served:
        response = await served.complete(suffix="!", decoding={"mode": "auto"})
    assert response.status_code == 200
    assert served.engine.submitted[0].suffix == (33,)


async def test_a_suffix_is_refused_where_it_cannot_be_honoured(serve):
    async with serve() as served:
        response = await served.complete(suffix="!")
    assert response.status_code == 400
    assert error_of(response)["param"] == "suffix"
    assert error_of(response)["code"] == "unsupported_parameter"


async def test_a_stop_string_over_token_borders_is_never_shown(serve):
    async with serve(ScriptedEngine(saying("say STOP now"))) as served:
        chunks = events(await served.complete(stop=["STOP", "zzz"], stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "say "
    assert chunks[-1]["choices"][0]["stop_reason"] == "STOP"
    assert len(served.engine.ended_early) == 1


async def test_what_looked_like_a_stop_string_is_given_in_the_end(serve):
    async with serve(ScriptedEngine(saying("say STO"))) as served:
        body = (await served.complete(stop="STOP")).json()
    assert body["choices"][0]["text"] == "say STO"
    assert served.engine.ended_early == []


async def test_the_stop_string_stays_when_asked_for(serve):
    async with serve(ScriptedEngine(saying("say STOP now"))) as served:
        body = (await served.complete(stop="STOP", include_stop_str_in_output=True)).json()
    assert body["choices"][0]["text"] == "say STOP"


async def test_stop_strings_wait_for_min_tokens(serve):
    async with serve(ScriptedEngine(saying("aXbXc"))) as served:
        body = (await served.complete(stop="X", min_tokens=3)).json()
    assert body["choices"][0]["text"] == "aXb"
