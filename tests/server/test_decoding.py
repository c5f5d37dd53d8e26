"""The `decoding` object: what a family can do, frames of a canvas in a stream."""

import pytest

from sampler import DecodingMode
from server.replies.reply_format import DecodingWriter
from server.replies.running_answers import ChoicePiece
from server.schema.common import DecodingBody
from server.text.answer_text import Piece
from tests.server.conftest import error_of, events
from tests.server.scripted_engine import ScriptedEngine, developing, frame, saying
from weights import DraftLimit, FamilyRule, Grid, Settle, Speaks

BLOCKS = FamilyRule(
    modes=("diffusion",),
    settle=Settle.BLOCK,
    draft_limit=DraftLimit.CANVAS_END,
    draft_speaks_of=Speaks.OWN,
    grid=Grid.ABSOLUTE,
    block_length=4,
    mask_token_id=255,
)
STEPS = {"mode": "diffusion", "stream": "steps"}


@pytest.mark.anyio
async def test_every_knob_reaches_the_engine(serve):
    decoding = {
        "mode": "diffusion",
        "max_steps": 9,
        "rule": "threshold",
        "preference": "margin",
        "confidence": 0.8,
        "sub_block_length": 2,
        "edit_confidence": 0.95,
        "max_edit_steps": 3,
        "remask": 0.25,
    }
    async with serve(ScriptedEngine(modes=("diffusion",)), rule=BLOCKS) as served:
        response = await served.chat(decoding=decoding)
    asked = served.engine.submitted[0].params.decoding
    assert response.status_code == 200, response.text
    assert {name: getattr(asked, name) for name in decoding} == decoding
    assert asked.mode is DecodingMode.DIFFUSION
    assert not asked.frames


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("decoding", "param"),
    [
        ({"mode": "speculative"}, "decoding.mode"),
        ({"rule": "wishful"}, "decoding.rule"),
        ({"preference": "fastest"}, "decoding.preference"),
        ({"cache": "dual"}, "decoding.cache"),
        ({"cache": "sometimes"}, "decoding.cache"),
        ({"remask": 1}, "decoding.remask"),
        ({"width": 2000}, "decoding.width"),
        ({"infill_length": 4}, "decoding.infill_length"),
        ({"stream": "steps"}, "decoding.stream"),
        ({"stream": "snapshots"}, "decoding.stream"),
        ({"stream": "moments"}, "decoding.stream"),
    ],
)
async def test_what_the_family_cannot_do_is_refused_before_the_engine(serve, decoding, param):
    async with serve(ScriptedEngine(modes=("diffusion",)), rule=BLOCKS) as served:
        chat = await served.chat(decoding=decoding)
        completion = await served.complete(decoding=decoding)
    assert (chat.status_code, completion.status_code) == (400, 400)
    assert error_of(chat)["param"] == error_of(completion)["param"] == param
    assert served.engine.submitted == []


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["chat", "complete"])
async def test_a_stream_of_steps_shows_the_canvas_in_chunks_without_text(serve, kind):
    engine = ScriptedEngine(developing("_b", final="ab"), modes=("diffusion",))
    async with serve(engine, rule=BLOCKS) as served:
        response = await getattr(served, kind)(decoding=STEPS, stream=True)
    chunks = events(response)
    shown = [chunk for chunk in chunks if "decoding" in chunk]
    choice = shown[0]["choices"][0]
    texts = [
        part["choices"][0].get("text", part["choices"][0].get("delta", {}).get("content", ""))
        for part in chunks
    ]
    assert engine.submitted[0].params.decoding.frames
    assert len(shown) == 1
    assert choice.get("delta", {"content": choice.get("text")}) == {"content": ""}
    assert shown[0]["decoding"] == {
        "v": 1,
        "index": 0,
        "frame": {
            "step": 1,
            "base": 0,
            "length": 2,
            "set": [[1, 98, "b", 0.5, "diffusion", "draft"]],
        },
    }
    assert "".join(texts) == "ab"


@pytest.mark.anyio
async def test_a_stream_of_final_tokens_has_no_frames(serve):
    engine = ScriptedEngine(developing("_b", final="ab"), modes=("diffusion",))
    async with serve(engine, rule=BLOCKS) as served:
        chunks = events(await served.chat(decoding={"mode": "diffusion"}, stream=True))
    assert [chunk for chunk in chunks if "decoding" in chunk] == []


def _frames_sent(tokenizer, times_s):
    writer = DecodingWriter(DecodingBody(stream="steps"), tokenizer)
    extras = [
        writer.extra(ChoicePiece(0, Piece(frame=frame("a_", step))), now_s=now_s)
        for step, now_s in enumerate(times_s)
    ]
    return [extra.frame.step for extra in extras if extra is not None]


def test_frames_come_at_a_bounded_rate(tokenizer):
    assert _frames_sent(tokenizer, [0.0, 0.01, 0.02, 0.06, 0.07, 0.2]) == [0, 3, 5]


@pytest.mark.anyio
async def test_frames_that_a_slow_client_has_missed_are_left_out_but_no_text_is(serve):
    steps = ["____"] * 50
    engine = ScriptedEngine(developing(*steps, final="abcd"), modes=("diffusion",))
    async with serve(engine, rule=BLOCKS) as served:
        chunks = events(await served.chat(decoding=STEPS, stream=True))
    shown = [chunk for chunk in chunks if "decoding" in chunk]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert 1 <= len(shown) < 50
    assert text == "abcd"


@pytest.mark.anyio
async def test_frames_do_not_disturb_the_official_clients_helper(serve):
    import httpx2
    import openai

    engine = ScriptedEngine(developing("_b", "a_", final="ab"), modes=("diffusion",))
    async with serve(engine, rule=BLOCKS) as served:
        transport = httpx2.ASGITransport(app=served.app)
        client = openai.AsyncOpenAI(
            api_key="none",
            base_url="http://test/v1",
            http_client=httpx2.AsyncClient(transport=transport),
        )
        async with client.chat.completions.stream(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
            extra_body={"decoding": STEPS | {"trace": True}},
        ) as stream:
            answer = await stream.get_final_completion()
        await client.close()
    assert answer.choices[0].message.content == "ab"


@pytest.mark.anyio
async def test_trace_and_seed_work_beside_frames(serve):
    engine = ScriptedEngine(saying("x"), modes=("ar", "diffusion"))
    async with serve(engine) as served:
        response = await served.chat(decoding=STEPS | {"trace": True}, stream=True, seed=4)
    asked = engine.submitted[0].params
    assert response.status_code == 200
    assert (asked.decoding.frames, asked.decoding.trace, asked.seed) == (True, True, 4)
