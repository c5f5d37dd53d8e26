"""Snapshots: the whole answer as it stands, at every change that the client keeps up with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampler import Delta, FinishReason, Frame, FramePosition, FrameState, TokenKind
from server.text.snapshots import Snapshots
from tests.server.conftest import events
from tests.server.scripted_engine import EOS, ScriptedEngine, stats
from tests.server.test_decoding import BLOCKS

SNAPSHOTS = {"mode": "diffusion", "stream": "snapshots"}


def canvas(text, *, base, step, final=""):
    """A frame of a text with `_` for what is open; its letters in `final` are final."""
    positions = [
        FramePosition(
            base + offset,
            ord(letter),
            0.5,
            TokenKind.DIFFUSION,
            FrameState.FINAL if letter in final else FrameState.DRAFT,
        )
        for offset, letter in enumerate(text)
        if letter != "_"
    ]
    return Frame(step=step, base=base, length=len(text), positions=tuple(positions))


def text_of(frame):
    letters = {position.offset: chr(position.token_id) for position in frame.positions}
    return "".join(letters.get(offset, "_") for offset in range(frame.length))


def merged(*frames, limit=None):
    snapshots = Snapshots()
    shown = [snapshots.add(frame, limit=None) for frame in frames[:-1]]
    return [*shown, snapshots.add(frames[-1], limit=limit)]


def test_final_tokens_before_the_canvas_stay():
    first = canvas("ab", base=0, step=1, final="ab")
    second = canvas("_d", base=2, step=2)
    shown = merged(first, second)
    assert [text_of(frame) for frame in shown] == ["ab", "ab_d"]
    assert [frame.base for frame in shown] == [0, 0]


def test_a_draft_that_was_taken_back_is_gone():
    shown = merged(canvas("a_c", base=0, step=1), canvas("_b_", base=0, step=2))
    assert text_of(shown[1]) == "_b_"


def test_a_final_token_cannot_be_taken_back():
    shown = merged(canvas("a_", base=0, step=1, final="a"), canvas("_b", base=0, step=2))
    assert text_of(shown[1]) == "ab"


def test_what_has_not_changed_is_not_shown_again():
    shown = merged(canvas("a_", base=0, step=1), canvas("a_", base=0, step=2))
    assert shown[1] is None


def test_nothing_is_shown_behind_the_end():
    shown = merged(
        canvas("ab", base=0, step=1), canvas("abcd", base=0, step=2, final="abcd"), limit=3
    )
    assert text_of(shown[1]) == "abc"


@given(
    texts=st.lists(st.text(alphabet="_abc", min_size=4, max_size=4), min_size=1, max_size=6),
    kept=st.integers(0, 5),
)
def test_the_last_snapshot_does_not_depend_on_those_before_if_nothing_was_final(texts, kept):
    frames = [canvas(text, base=0, step=step) for step, text in enumerate(texts)]
    all_of_them = [frame for frame in merged(*frames) if frame is not None]
    latest = merged(*frames[min(kept, len(frames) - 1) :])
    assert text_of(all_of_them[-1]) == text_of([each for each in latest if each][-1])


def developing(request):
    return [
        Delta(request.id, frame=canvas("_b", base=0, step=1)),
        Delta(request.id, token_ids=(97, 98), frame=canvas("ab", base=0, step=2, final="ab")),
        Delta(request.id, frame=canvas("c_", base=2, step=3)),
        Delta(
            request.id,
            token_ids=(99, EOS),
            frame=canvas("cx", base=2, step=4, final="cx"),
            finish=FinishReason.STOP,
            stop_token_id=EOS,
            stats=stats(request, 4),
        ),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["chat", "complete"])
async def test_a_stream_of_snapshots_ends_with_the_whole_answer(serve, kind):
    engine = ScriptedEngine(developing, modes=("diffusion",))
    async with serve(engine, rule=BLOCKS) as served:
        chunks = events(await getattr(served, kind)(decoding=SNAPSHOTS, stream=True))
    frames = [chunk["decoding"]["frame"] for chunk in chunks if "decoding" in chunk]
    text = "".join(
        chunk["choices"][0].get("text", chunk["choices"][0].get("delta", {}).get("content", ""))
        for chunk in chunks
    )
    assert engine.submitted[0].params.decoding.frames
    assert text == frames[-1]["text"] == "abc"
    assert {frame["base"] for frame in frames} == {0}
    assert frames[-1]["length"] == 3
    assert [entry[2] for entry in frames[-1]["set"]] == ["a", "b", "c"]
    assert [frame["step"] for frame in frames] == sorted(frame["step"] for frame in frames)


@pytest.mark.anyio
async def test_a_stop_string_ends_the_snapshots_with_the_text(serve):
    engine = ScriptedEngine(developing, modes=("diffusion",))
    async with serve(engine, rule=BLOCKS) as served:
        chunks = events(await served.chat(decoding=SNAPSHOTS, stream=True, stop=["b"]))
    frames = [chunk["decoding"]["frame"] for chunk in chunks if "decoding" in chunk]
    assert frames[-1]["text"] in ("b", "a")
