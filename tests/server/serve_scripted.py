"""A server process around a scripted engine: `python -m tests.server.serve_scripted FLAGS`.

A prompt of "trace" is answered with a token of each kind; "canvas" shows one and waits; "develop"
shows one from its opening to the answer "tide"; "die" ends the engine in the middle of its answer;
"wait" answers once and then waits for ever; "flood" is answered with megabytes; all else gets
"hello", held to a schema as the word of an object, and to calls as the argument of one.
"""

import asyncio
import json
import socket
import sys

from sampler import (
    Delta,
    FinishReason,
    Frame,
    FramePosition,
    FrameState,
    GrammarKind,
    TokenKind,
    TokenTrace,
)
from server.app import create_app
from server.serve import listen, run
from server.settings import load_settings
from server.shell.cli import build_parser
from server.shell.flags import given
from server.watch.logging_setup import set_up_logging
from tests.server.scripted_engine import (
    ScriptedEngine,
    byte_tokenizer,
    frame,
    saying,
    stats,
    template,
)


class MortalEngine(ScriptedEngine):
    """Ends its streams when it is stopped or dies, as the real client does."""

    def __init__(self):
        # Clients describe their tools at length.
        super().__init__(self._answer, context_length=4096)
        self._waits = []

    def _answer(self, request):
        prompt = bytes(request.prompt)
        if request.params.grammar is not None:
            return saying(_held_to(request.params.grammar))(request)
        if prompt == b"trace":
            return [_traced(request)]
        if prompt == b"canvas":
            return [Delta(request.id, frame=frame("a_c_", 1)), self._waiting()]
        if prompt == b"develop":
            return _developed(request)
        if prompt == b"die":
            return [Delta(request.id, token_ids=(65,)), *self._death()]
        if prompt == b"flood":
            return (Delta(request.id, token_ids=(65,) * 256) for _ in range(1 << 16))
        if prompt == b"wait":
            return [Delta(request.id, token_ids=(65,)), self._waiting()]
        return saying("hello")(request)

    def _waiting(self):
        self._waits.append(asyncio.Event())
        return self._waits[-1]

    def _death(self):
        event = self._waiting()
        asyncio.get_running_loop().call_later(0.05, self.die)
        return [event]

    def die(self):
        super().die()
        for event in self._waits:
            event.set()

    async def stop(self, *, drain_s):
        await super().stop(drain_s=drain_s)
        self.die()


def _held_to(grammar):
    """An object with a word; where calls are asked for, a call of the first function with it."""
    word = {"word": "hello"}
    if grammar.kind is GrammarKind.JSON_SCHEMA:
        items = json.loads(grammar.text).get("items", {})
        if "anyOf" in items:
            name = items["anyOf"][0]["properties"]["name"]["const"]
            return json.dumps([{"name": name, "arguments": word}])
    return json.dumps(word)


def _traced(request):
    kinds = (TokenKind.DIFFUSION, TokenKind.AR, TokenKind.VERIFIED)
    return Delta(
        request.id,
        token_ids=(65, 66, 67),
        trace=tuple(TokenTrace(step, kind, 0.5) for step, kind in enumerate(kinds)),
        finish=FinishReason.LENGTH,
        stats=stats(request, 3, ar_tokens=1, diffusion_tokens=1, verified_tokens=1),
    )


def _developed(request):
    """Two canvases' worth of kinds and states, slowly enough that every frame is shown."""
    ar, diffusion, verified = TokenKind.AR, TokenKind.DIFFUSION, TokenKind.VERIFIED
    t, i, d, e = b"tide"
    yield Delta(
        request.id,
        frame=Frame(
            step=1,
            base=0,
            length=4,
            positions=(FramePosition(1, i, 0.6, diffusion, FrameState.DRAFT),),
            progress=((0, 0.9), (2, 0.5), (3, 1.0)),
        ),
    )
    yield _soon()
    yield Delta(
        request.id,
        token_ids=(t, i),
        trace=(TokenTrace(1, ar, 0.25), TokenTrace(0, diffusion, 0.5)),
        frame=Frame(
            step=2,
            base=0,
            length=4,
            positions=(
                FramePosition(0, t, 0.9, ar, FrameState.FINAL),
                FramePosition(1, i, 0.6, diffusion, FrameState.FINAL),
                FramePosition(2, d, 0.4, verified, FrameState.DRAFT),
            ),
            progress=((3, 0.4),),
        ),
    )
    yield _soon()
    yield Delta(
        request.id,
        token_ids=(d, e),
        trace=(TokenTrace(2, verified, 0.1), TokenTrace(2, ar, 0.0)),
        finish=FinishReason.LENGTH,
        stats=stats(request, 4, steps=3, ar_tokens=2, diffusion_tokens=1, verified_tokens=1),
    )


def _soon():
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, event.set)
    return event


def main():
    settings = load_settings(given(build_parser().parse_args(["serve", *sys.argv[1:]])))
    set_up_logging(form="json", level="info")
    engine = MortalEngine()
    app = create_app(engine, byte_tokenizer(), template(), settings)
    bound = listen(settings)
    # The kernel would else take megabytes off our hands before a slow client is noticed.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    return run(
        app,
        engine,
        settings,
        bound=bound,
        on_ready=lambda address: print(address, flush=True),
    )


if __name__ == "__main__":
    raise SystemExit(main())
