"""An engine in memory that says what the test tells it, and a tokenizer of single bytes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from sampler import (
    Delta,
    EngineMetrics,
    EngineStopped,
    FinishReason,
    Frame,
    FramePosition,
    FrameState,
    ModelInfo,
    Overloaded,
    Request,
    RequestStats,
    TokenKind,
    TokenLogprob,
)
from weights import ChatTemplate
from weights.text.tokenizer import Tokenizer, read_tokenizer_json

EOS = 256
BOS = 257
SPECIAL = {"<eos>": EOS, "<bos>": BOS}
CONTEXT_LENGTH = 512

TEMPLATE = """{%- for message in messages -%}
{%- if message.content == 'forbidden' -%}{{ raise_exception('no such words') }}{%- endif -%}
<{{ message.role }}>{{ message.content }}
{% endfor -%}
{%- if add_generation_prompt -%}<assistant>{%- endif -%}"""


def byte_tokenizer() -> Tokenizer:
    """Token i < 256 is the byte i; 256 ends a text and 257 begins one."""
    alphabet = _byte_characters()
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={letter: byte for byte, letter in enumerate(alphabet)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    return read_tokenizer_json(
        backend.to_str(), where="bytes", bos_token="<bos>", eos_token="<eos>"
    )


def _byte_characters() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters.update({byte: chr(0x100 + index) for index, byte in enumerate(others)})
    return [letters[byte] for byte in range(256)]


def template(source: str = TEMPLATE) -> ChatTemplate:
    return ChatTemplate(source, special_tokens={"eos_token": "<eos>", "bos_token": "<bos>"})


def stats(request: Request, num_tokens: int, **changes: object) -> RequestStats:
    now = time.monotonic()
    values = {
        "prompt_tokens": len(request.prompt),
        "cached_tokens": 0,
        "answer_tokens": num_tokens,
        "steps": num_tokens,
        "ar_tokens": num_tokens,
        "diffusion_tokens": 0,
        "verified_tokens": 0,
        "revised_tokens": 0,
        "num_preemptions": 0,
        "scheduled_s": now,
        "first_token_s": now,
        "finished_s": now,
    }
    return RequestStats(**(values | changes))


def saying(text: str, *, cut: int = 1, finish: FinishReason = FinishReason.STOP) -> "Script":
    """A script that answers with a text, `cut` tokens in a delta."""

    def script(request: Request) -> list[Delta]:
        token_ids = list(text.encode())
        is_short = len(token_ids) <= request.params.max_tokens
        token_ids = token_ids[: request.params.max_tokens]
        ends_itself = is_short and finish is FinishReason.STOP
        if ends_itself:
            token_ids.append(EOS)
        deltas = [
            _delta(request, token_ids[start : start + cut])
            for start in range(0, len(token_ids), cut)
        ]
        last = deltas.pop() if deltas else Delta(request.id)
        return [
            *deltas,
            Delta(
                request.id,
                token_ids=last.token_ids,
                logprobs=last.logprobs,
                finish=finish if is_short else FinishReason.LENGTH,
                stop_token_id=EOS if ends_itself else None,
                stats=stats(request, len(token_ids)),
            ),
        ]

    return script


def _delta(request: Request, token_ids: Sequence[int]) -> Delta:
    logprobs = ()
    if request.params.logprobs is not None:
        logprobs = tuple(logprob(token_id, request.params.logprobs) for token_id in token_ids)
    return Delta(request.id, token_ids=tuple(token_ids), logprobs=logprobs)


def developing(*steps: str, final: str) -> "Script":
    """A script that shows a canvas at each step, `_` for what is open, and then the answer."""

    def script(request: Request) -> list[Delta]:
        shown = [Delta(request.id, frame=frame(text, step)) for step, text in enumerate(steps, 1)]
        last = saying(final, cut=len(final) + 1)(request)
        return [*(shown if request.params.decoding.frames else []), *last]

    return script


def frame(text: str, step: int) -> Frame:
    filled = [(offset, byte) for offset, byte in enumerate(text.encode()) if byte != ord("_")]
    return Frame(
        step=step,
        base=0,
        length=len(text),
        positions=tuple(
            FramePosition(offset, byte, 0.5, TokenKind.DIFFUSION, FrameState.DRAFT)
            for offset, byte in filled
        ),
    )


def logprob(token_id: int, num_top: int = 0) -> TokenLogprob:
    """A made-up logprob that depends on the token."""
    top = tuple(((token_id + step) % 256, -0.5 - step) for step in range(num_top))
    return TokenLogprob(token_id=token_id, logprob=-0.5 - token_id / 1000, top=top)


Script = Callable[[Request], Sequence[Delta | Exception | asyncio.Event]]


@dataclass
class ScriptedEngine:
    """Says what `script` returns for a request; an event in it is waited for, an exception raised.

    capacity: requests that may be open at a time
    """

    script: Script = field(default_factory=lambda: saying("hello"))
    modes: tuple[str, ...] = ("ar",)
    can_infill: bool = False
    can_constrain: bool = True
    capacity: int = 1000
    context_length: int = CONTEXT_LENGTH
    submitted: list[Request] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    ended_early: list[str] = field(default_factory=list)
    is_alive: bool = False
    is_ready: bool = False
    last_heard_s: float = field(default_factory=time.monotonic)
    metrics: EngineMetrics = field(default_factory=EngineMetrics)
    num_starts: int = 0
    stopped_with: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._open: set[str] = set()

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name="tiny",
            family="scripted",
            modes=self.modes,
            context_length=self.context_length,
            vocab_size=258,
            eos_ids=(EOS,),
            mask_token_id=None,
            block_length=None,
            can_infill=self.can_infill,
            load_s=0.0,
            can_constrain=self.can_constrain,
        )

    @property
    def num_open(self) -> int:
        return len(self._open)

    async def start(self) -> None:
        self.num_starts += 1
        self.is_alive = self.is_ready = True

    async def stop(self, *, drain_s: float) -> None:
        self.stopped_with.append(drain_s)
        self.is_alive = self.is_ready = False

    def submit(self, request: Request) -> AsyncIterator[Delta]:
        if not self.is_ready:
            raise EngineStopped("the engine is not running")
        if len(self._open) >= self.capacity:
            raise Overloaded(num_waiting=len(self._open), retry_after_s=2.5)
        self.submitted.append(request)
        self._open.add(request.id)
        return self._say(request)

    def cancel(self, request_id: str) -> None:
        if request_id in self._open:
            self._open.discard(request_id)
            self.cancelled.append(request_id)

    def end_early(self, request_id: str) -> None:
        self.ended_early.append(request_id)

    def die(self) -> None:
        self.is_alive = self.is_ready = False

    async def _say(self, request: Request) -> AsyncIterator[Delta]:
        num_tokens = 0
        for item in self.script(request):
            await asyncio.sleep(0)
            if request.id in self.ended_early:
                self._open.discard(request.id)
                costs = stats(request, num_tokens, cached_tokens=1)
                yield Delta(request.id, finish=FinishReason.ABORT, stats=costs)
                return
            if isinstance(item, asyncio.Event):
                await item.wait()
                if not self.is_alive:
                    raise EngineStopped("the engine is gone")
            elif isinstance(item, Exception):
                self._open.discard(request.id)
                raise item
            else:
                num_tokens += len(item.token_ids)
                if item.finish is not None:
                    self._open.discard(request.id)
                yield item
