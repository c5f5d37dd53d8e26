"""The base's own answers to prompts, many at a time: the texts that an adapter is distilled on."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from kernels import PURPOSE_TARGET, PagedBatch, ScoreSpec, allocate_kv_cache, score_rows
from weights.network.interface import Network, NetworkInput
from weights.training.data.prompts import Prompt

log = logging.getLogger(__name__)

_LOG_EVERY = 100


@dataclass(frozen=True, slots=True)
class AnsweredPrompt:
    """A prompt with an answer of the base; the last token may be the end of text."""

    prompt: Prompt
    answer_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How answers are drawn.

    max_tokens:  of an answer
    lanes:       answers written at a time
    temperature: of every other answer; the ones between are greedy
    """

    max_tokens: int = 160
    lanes: int = 64
    temperature: float = 0.7
    seed: int = 1


@dataclass(slots=True)
class _Lane:
    prompt: Prompt
    token_ids: list[int]
    number: int
    num_settled: int = 0


class AnswerWriter:
    """Greedy or sampled decoding in lanes of one cache; a lane whose answer ends takes the next."""

    def __init__(
        self, network: Network, *, eos_ids: frozenset[int], settings: AnswerSettings
    ) -> None:
        self._network = network
        self._eos_ids = eos_ids
        self._settings = settings
        config = network.config
        self._length = min(config.max_positions, 512)
        self._cache = allocate_kv_cache(
            num_layers=network.num_layers,
            num_pages=settings.lanes,
            page_size=self._length,
            num_kv_heads=network.num_kv_heads,
            head_dim=network.head_dim,
            dtype=network.token_table.dtype,
            device=network.token_table.device,
            is_zeroed=network.is_row_exact,
        )

    @torch.inference_mode()
    def write(self, prompts: list[Prompt]) -> Iterator[AnsweredPrompt]:
        """Answers as they end, in no fixed order."""
        waiting = list(enumerate(prompts))[::-1]
        lanes: list[_Lane | None] = [None] * self._settings.lanes
        while True:
            for index, lane in enumerate(lanes):
                if lane is None and waiting:
                    number, prompt = waiting.pop()
                    lanes[index] = _Lane(prompt, list(prompt.token_ids), number)
            running = [(index, lane) for index, lane in enumerate(lanes) if lane is not None]
            if not running:
                return
            for (index, lane), token in zip(running, self._step(running), strict=True):
                lane.num_settled = len(lane.token_ids)
                lane.token_ids.append(token)
                if self._is_done(lane):
                    lanes[index] = None
                    answer = lane.token_ids[len(lane.prompt.token_ids) :]
                    yield AnsweredPrompt(lane.prompt, tuple(answer))

    def _is_done(self, lane: _Lane) -> bool:
        length = len(lane.token_ids)
        is_full = length - len(lane.prompt.token_ids) >= self._settings.max_tokens
        return is_full or length == self._length or lane.token_ids[-1] in self._eos_ids

    def _step(self, running: list[tuple[int, _Lane]]) -> list[int]:
        """Run what is new of each lane, and draw the next token of each."""
        counts = torch.tensor([len(lane.token_ids) - lane.num_settled for _, lane in running])
        stops = counts.cumsum(0)
        positions = torch.cat(
            [torch.arange(lane.num_settled, len(lane.token_ids)) for _, lane in running]
        )
        pages = torch.tensor([index for index, _ in running])
        batch = PagedBatch(
            span_starts=torch.cat((torch.zeros(1), stops)).int(),
            page_table=pages[:, None].int(),
            slots=pages.repeat_interleave(counts) * self._length + positions,
            limits=(positions + 1).int(),
            max_span=int(counts.max()),
            max_limit=int(positions.max()) + 1,
        )
        ids = [i for _, lane in running for i in lane.token_ids[lane.num_settled :]]
        step = NetworkInput(torch.tensor(ids), positions, stops - 1, batch)
        hidden = self._network.forward(step, self._cache)
        scores = score_rows(
            hidden, self._network.head_weight, self._network.head_bias, self._spec(running)
        )
        drawn: list[int] = scores.token.tolist()
        return drawn

    def _spec(self, running: list[tuple[int, _Lane]]) -> ScoreSpec:
        num = len(running)
        numbers = torch.tensor([lane.number for _, lane in running])
        sampled = (numbers % 2).float() * self._settings.temperature
        return ScoreSpec(
            temperature=sampled,
            seeds=numbers + self._settings.seed * 1_000_003,
            positions=torch.tensor([len(lane.token_ids) for _, lane in running]),
            purposes=torch.full((num,), PURPOSE_TARGET, dtype=torch.int32),
            attempts=torch.zeros(num, dtype=torch.int32),
        )


def write_answers(
    path: Path, writer: AnswerWriter, prompts: list[Prompt], *, minutes: float
) -> None:
    """Append answers to a file of JSON lines until the time is over or all prompts have one.

    Prompts that have an answer already are passed over: a stopped run goes on where it was.
    """
    done = {answered.prompt.token_ids for answered in read_answers(path)}
    left = [prompt for prompt in prompts if prompt.token_ids not in done]
    stop_s = time.monotonic() + 60 * minutes
    num_tokens = 0
    with path.open("a", encoding="utf-8") as file:
        for number, answered in enumerate(writer.write(left), 1):
            fields = {
                "kind": answered.prompt.kind,
                "held_out": answered.prompt.is_held_out,
                "prompt": answered.prompt.token_ids,
                "answer": answered.answer_ids,
            }
            file.write(json.dumps(fields, separators=(",", ":")) + "\n")
            num_tokens += len(answered.answer_ids)
            if number % _LOG_EVERY == 0:
                log.info("%d answers, %d tokens", number, num_tokens)
            if time.monotonic() > stop_s:
                return


def texts_as_answers(
    prompts: list[Prompt], texts: list[tuple[int, ...]], *, max_tokens: int
) -> list[AnsweredPrompt]:
    """Prose openings with the text that went on there in place of an answer.

    The base's own distributions are what is learned either way; the text only says after what.

    texts: the whole paragraphs, in the order of the prompts
    """
    return [
        AnsweredPrompt(prompt, text[len(prompt.token_ids) :][:max_tokens])
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def read_answers(path: Path) -> list[AnsweredPrompt]:
    """The answers of a file; none when there is no file."""
    if not path.is_file():
        return []
    answers = []
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        prompt = Prompt(fields["kind"], tuple(fields["prompt"]), bool(fields["held_out"]))
        answers.append(AnsweredPrompt(prompt, tuple(fields["answer"])))
    return answers
