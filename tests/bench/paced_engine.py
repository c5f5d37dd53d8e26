"""An engine process whose network does nothing: every request gets tokens at a steady pace.

`sampler.EngineClient` starts it in the place of `sampler.engine_process`. When it is told to stop
it writes the moments at which it sent each token to the file that its configuration calls the
model. Answers of at most `QUICK_TOKENS` come at once.
"""

import argparse
import contextlib
import json
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from sampler.border.engine_metrics import EngineMetrics
from sampler.border.messages import (
    Cancel,
    ModelInfo,
    Ready,
    Shutdown,
    Start,
    StepOutput,
    Submit,
    TokenBatch,
)
from sampler.border.request import Delta, FinishReason, Request, RequestStats
from sampler.engine_process import ChannelClosed, EngineChannel

TOKENS_PER_S = 10.0
QUICK_TOKENS = 4
STEP_S = 0.002
HEARTBEAT_S = 1.0
LETTERS = b"abcdefghijklmnopqrstuvwxyz "
INFO = ModelInfo(
    name="paced",
    family="none",
    modes=("ar",),
    context_length=100_000,
    vocab_size=258,
    eos_ids=(256,),
    mask_token_id=None,
    block_length=None,
    can_infill=False,
    load_s=0.0,
)


@dataclass
class Paced:
    """A request that is being answered: when its next token is due, when the others were sent."""

    request: Request
    due_s: float
    sent_s: list[float] = field(default_factory=list)

    @property
    def is_quick(self) -> bool:
        return self.request.params.max_tokens <= QUICK_TOKENS


class PacedEngine:
    """Sends what is due, at most one token a request and step.

    sent_s: when each token of the slow answers was sent, by request
    """

    def __init__(self, channel: EngineChannel) -> None:
        self._channel = channel
        self._open: dict[str, Paced] = {}
        self.sent_s: dict[str, list[float]] = {}
        self._metrics = EngineMetrics()

    def run(self) -> None:
        """Serve until told to stop."""
        spoke_s = 0.0
        while True:
            for message in self._channel.receive(timeout_s=STEP_S):
                if isinstance(message, Submit):
                    self._take(message.request)
                elif isinstance(message, Cancel):
                    self._open.pop(message.request_id, None)
                elif isinstance(message, Shutdown):
                    return
            now_s = time.monotonic()
            output = self._step(now_s)
            if output.deltas or output.tokens.request_ids or now_s - spoke_s > HEARTBEAT_S:
                self._channel.send(output)
                spoke_s = now_s

    def _take(self, request: Request) -> None:
        # Spread over the interval, as requests are that come when they like.
        phase = (len(self.sent_s) * 0.618) % 1.0
        paced = Paced(request, time.monotonic() + phase / TOKENS_PER_S)
        self._open[request.id] = paced
        if not paced.is_quick:
            self.sent_s[request.id] = paced.sent_s

    def _step(self, now_s: float) -> StepOutput:
        tokens, deltas = TokenBatch(), []
        for name, paced in list(self._open.items()):
            if paced.due_s > now_s and not paced.is_quick:
                continue
            paced.due_s += 1 / TOKENS_PER_S
            paced.sent_s.append(now_s)
            number = len(paced.sent_s)
            letter = LETTERS[number % len(LETTERS)]
            if number < paced.request.params.max_tokens:
                tokens.request_ids.append(name)
                tokens.token_ids.append(letter)
            else:
                deltas.append(_last(paced, letter, now_s))
                del self._open[name]
        self._metrics.num_running = len(self._open)
        return StepOutput(tokens=tokens, deltas=deltas, metrics=self._metrics)


def _last(paced: Paced, token_id: int, now_s: float) -> Delta:
    number = len(paced.sent_s)
    stats = RequestStats(
        prompt_tokens=len(paced.request.prompt),
        cached_tokens=0,
        answer_tokens=number,
        steps=number,
        ar_tokens=number,
        diffusion_tokens=0,
        verified_tokens=0,
        revised_tokens=0,
        num_preemptions=0,
        scheduled_s=paced.request.arrived_s,
        first_token_s=paced.sent_s[0],
        finished_s=now_s,
    )
    return Delta(paced.request.id, token_ids=(token_id,), finish=FinishReason.LENGTH, stats=stats)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--log-level")
    parser.add_argument("--log-format")
    with socket.socket(fileno=parser.parse_args().fd) as connection:
        channel = EngineChannel(connection)
        (start,) = channel.receive(timeout_s=60.0)
        assert isinstance(start, Start), "the first message is the configuration"
        channel.send(Ready(info=INFO))
        engine = PacedEngine(channel)
        with contextlib.suppress(ChannelClosed):
            engine.run()
    Path(start.config.model).write_text(json.dumps(engine.sent_s))


if __name__ == "__main__":
    main()
