"""A simulated engine: the real balance controller over traces of acceptance and a model of time.

A text is a trace. `reach[x]` says how far behind the last known token the draft of position x
may stand and still be what the verifying row draws; `uncertainty[x]` is what the network does
not know of it. Traces do not depend on the policy, so that policies meet the same texts. A
closed loop keeps `concurrency` sequences running; prompts share the row budget.

Shapes: N sequences at a time, X positions of a text.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sampler.balance.balance import WIDTHS, Balance, Load, canvas_costs
from sampler.balance.step_time import StepShape, StepTimeModel

TRACES = Path(__file__).parent / "traces" / "default_model.json"
POOL_TEXTS = 512
LONGEST_ANSWER = 256
PADDING = WIDTHS[-1]
MAX_ROWS = 4096


@dataclass(frozen=True)
class Texts:
    """Traces [texts, X], and the lengths of prompts and answers [texts]."""

    reach: np.ndarray
    uncertainty: np.ndarray
    prompt_tokens: np.ndarray
    answer_tokens: np.ndarray


def stretches(generator, levels, shares, mean_tokens, *, num_texts=POOL_TEXTS):
    """Hazard by position [texts, X]: stretches of a geometric length, each at one level."""
    length = LONGEST_ANSWER + PADDING
    changes = generator.random((num_texts, length)) < 1 / mean_tokens
    changes[:, 0] = True
    drawn = generator.choice(levels, p=shares, size=(num_texts, length))
    last = np.maximum.accumulate(np.where(changes, np.arange(length), 0), axis=1)
    return np.take_along_axis(drawn, last, axis=1)


def texts_from(generator, hazard, *, decay=0.985, informative=True):
    """Traces of texts with these hazards; farther drafts are confirmed a little less often."""
    chance = generator.random(hazard.shape)
    reach = np.floor(1 + np.log(np.maximum(chance, 1e-12) / hazard) / np.log(decay))
    reach = np.where(chance < hazard, reach, 0).astype(np.int64)
    known = hazard if informative else np.full_like(hazard, hazard.mean())
    spread = generator.lognormal(0.0, 1.0, hazard.shape)
    return Texts(
        reach=reach,
        uncertainty=np.clip((0.002 + 0.15 * (1 - known)) * spread, 0, 1),
        prompt_tokens=generator.integers(32, 257, hazard.shape[0]),
        answer_tokens=generator.integers(LONGEST_ANSWER // 2, LONGEST_ANSWER + 1, hazard.shape[0]),
    )


def workload(name: str, *, seed: int = 0) -> Texts:
    """Texts of one kind.

    easy, hard: one kind of text throughout; mixed: whole texts of either kind, and texts that
    change between them; blind: the same with uncertainties that say nothing; tail: canvases of
    32 positions, a fifth of which do not converge; recorded: the default model's canvas along its
    own answers (`record_traces`)
    """
    generator = np.random.default_rng([seed, 7])
    if name == "recorded":
        return recorded_texts(generator)
    match name:
        case "easy":
            hazard = stretches(generator, (0.85, 0.92, 0.96), (0.3, 0.4, 0.3), 64)
        case "hard":
            hazard = stretches(generator, (0.05, 0.2, 0.35), (0.3, 0.4, 0.3), 64)
        case "mixed" | "blind":
            hazard = stretches(generator, (0.1, 0.95), (0.5, 0.5), 96)
        case "tail":
            hazard = stretches(generator, (0.02, 0.9), (0.2, 0.8), 32)
        case _:
            raise ValueError(f"no workload is called {name!r}")
    return texts_from(generator, hazard, informative=name != "blind")


def recorded_texts(generator) -> Texts:
    """Texts of recorded traces in a random order, one after another."""
    traces = json.loads(TRACES.read_text())
    length = LONGEST_ANSWER + PADDING
    reach = np.zeros((POOL_TEXTS, length), dtype=np.int64)
    uncertainty = np.zeros((POOL_TEXTS, length))
    for text in range(POOL_TEXTS):
        filled = 0
        while filled < length:
            trace = traces[generator.integers(len(traces))]
            count = min(len(trace["reach"]), length - filled)
            reach[text, filled : filled + count] = trace["reach"][:count]
            uncertainty[text, filled : filled + count] = trace["uncertainty"][:count]
            filled += count
    return Texts(
        reach=reach,
        uncertainty=uncertainty,
        prompt_tokens=generator.integers(32, 257, POOL_TEXTS),
        answer_tokens=generator.integers(LONGEST_ANSWER // 2, LONGEST_ANSWER + 1, POOL_TEXTS),
    )


def gpu_seconds(rows: float, scored_rows: float, cache_entries: float) -> float:
    """An 8 B model in bfloat16 on one H200: weights are read in 3.8 ms, a row computes 27 us."""
    return 0.4e-3 + max(3.8e-3, 27e-6 * rows) + 1.5e-6 * scored_rows + 30e-9 * cache_entries


def cpu_seconds(rows: float, scored_rows: float, cache_entries: float) -> float:
    """A 135 M model in int8 on two CPU cores: reading costs as much as a few rows."""
    return 6e-3 + 1.5e-3 * rows + 0.4e-3 * scored_rows + 0.2e-6 * cache_entries


MACHINES: dict[str, Callable[[float, float, float], float]] = {
    "memory_bound": gpu_seconds,
    "compute_bound": cpu_seconds,
}


class FixedWidth:
    """A policy that never changes: AR (0) or windows of one width."""

    def __init__(self, width: int) -> None:
        self.width = width

    def seat(self, seat):
        """Nothing to remember."""

    def choose(self, starting, _load):
        return np.full(starting.size, self.width)

    def observe(self, shape, seconds):
        """Nothing to learn."""

    def observe_rounds(self, seats, offered, confirmed, uncertainty):
        """Nothing to learn."""

    def observe_singles(self, seats, uncertainty):
        """Nothing to learn."""


class Auto:
    """The real controller."""

    def __init__(self, concurrency: int, machine, generator, *, cap: int = 32) -> None:
        step_time = StepTimeModel()
        # What the engine's warm-up runs: a few dozen shapes.
        for rows in (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 384, 512):
            for scored in (1, rows // 2 + 1, rows):
                noise = generator.lognormal(0, 0.02)
                step_time.observe(StepShape(rows, scored, 0), machine(rows, scored, 0) * noise)
        step_time.fit()
        self.balance = Balance(num_seats=concurrency, costs=canvas_costs(), step_time=step_time)
        self.cap = cap

    def seat(self, seat):
        self.balance.seat(seat, cap=self.cap, is_seeded=False)

    def choose(self, starting, load):
        return self.balance.choose(starting, load)

    def observe(self, shape, seconds):
        self.balance.step_time.observe(shape, seconds)

    def observe_rounds(self, seats, offered, confirmed, uncertainty):
        self.balance.observe_rounds(seats, offered, confirmed, uncertainty)

    def observe_singles(self, seats, uncertainty):
        self.balance.observe_singles(seats, uncertainty)


@dataclass(frozen=True)
class Outcome:
    """What a simulated run measured, after its warm-up; times are seconds."""

    tokens: int
    seconds: float
    steps: int
    rows: int
    sequence_steps: int
    first_token_s: np.ndarray
    inter_token_s: np.ndarray
    request_token_s: np.ndarray

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    def summary(self, objective_s: float) -> dict[str, float]:
        good = (self.request_token_s <= objective_s).mean() if self.request_token_s.size else 0.0
        times = self.inter_token_s * 1e3
        return {
            "tokens_per_s": self.tokens_per_s,
            "first_token_p50_ms": float(np.median(self.first_token_s) * 1e3),
            "first_token_p95_ms": float(np.percentile(self.first_token_s, 95) * 1e3),
            **{f"inter_token_p{p}_ms": float(np.percentile(times, p)) for p in (50, 95, 99)},
            "goodput_tokens_per_s": self.tokens_per_s * float(good),
            "rows_per_token": self.rows / self.tokens,
            "steps_per_token": self.sequence_steps / self.tokens,
        }


class Simulator:
    """One run of a policy over texts; `run` may be called once."""

    def __init__(self, texts: Texts, machine, policy, *, concurrency: int, seed: int = 0) -> None:
        self.texts, self.machine, self.policy = texts, machine, policy
        self.generator = np.random.default_rng([seed, 11])
        self.now_s = 0.0
        self.next_text = 0
        shape = concurrency
        self.text = np.zeros(shape, dtype=np.int64)
        self.prompt_left = np.zeros(shape, dtype=np.int64)
        self.made = np.zeros(shape, dtype=np.int64)
        self.window = np.zeros(shape, dtype=np.int64)  # of a round that waits for its verifying
        self.arrived_s = np.zeros(shape)
        self.first_s = np.zeros(shape)
        self.last_s = np.zeros(shape)
        self.measures = False
        self._clear()
        for seat in range(concurrency):
            self._admit(seat)

    def run(self, num_tokens: int, warm_up_tokens: int) -> Outcome:
        """Simulate until so many tokens came after the warm-up."""
        while self.tokens < warm_up_tokens:
            self._step()
        self._clear()
        started_s = self.now_s
        while self.tokens < num_tokens:
            self._step()
        return Outcome(
            tokens=self.tokens,
            seconds=self.now_s - started_s,
            steps=self.steps,
            rows=self.rows,
            sequence_steps=self.sequence_steps,
            first_token_s=np.array(self.first_tokens or [0.0]),
            inter_token_s=np.concatenate(self.gaps),
            request_token_s=np.array(self.request_times),
        )

    def advance(self, num_steps: int) -> None:
        """Simulate so many steps."""
        for _ in range(num_steps):
            self._step()

    def _clear(self):
        self.tokens = self.steps = self.rows = self.sequence_steps = 0
        self.first_tokens, self.gaps, self.request_times = [], [], []

    def _admit(self, seat):
        text = self.next_text % self.texts.answer_tokens.size
        self.next_text += 1
        self.text[seat] = text
        self.prompt_left[seat] = self.texts.prompt_tokens[text]
        self.made[seat] = self.window[seat] = 0
        self.arrived_s[seat] = self.now_s
        self.policy.seat(seat)

    def _step(self):
        decodes = self.prompt_left == 0
        verifies = decodes & (self.window > 0)
        starting = np.flatnonzero(decodes & ~verifies)
        entries = int((self.texts.prompt_tokens[self.text] - self.prompt_left + self.made).sum())
        budget = MAX_ROWS - int(self.window[verifies].sum())
        if not decodes.all():
            budget = max(budget - MAX_ROWS // 4, starting.size)
        widths = np.zeros(self.text.size, dtype=np.int64)
        if starting.size:
            prompts = min(int(self.prompt_left.sum()), MAX_ROWS)
            pending = int(self.window[verifies].sum())
            load = Load(
                running=np.flatnonzero(decodes),
                budget_rows=budget,
                pending_rows=pending,
                prompt_rows=prompts,
                other_rows=0,
                num_others=0,
                cache_entries=entries,
            )
            widths[starting] = self.policy.choose(starting, load)
        widths = np.where(widths > 1, widths, 0)
        answer = self.texts.answer_tokens[self.text]
        widths[starting] = np.minimum(widths[starting], (answer - self.made)[starting] + 1)
        rows = np.where(verifies, self.window, np.maximum(widths, 1))
        scored = np.where(verifies, self.window, np.maximum(widths - 1, 1))
        rows[~decodes], scored[~decodes] = 0, 0
        left = MAX_ROWS - int(rows.sum())
        for seat in np.flatnonzero(~decodes).tolist():
            taken = min(int(self.prompt_left[seat]), left)
            rows[seat] = taken
            scored[seat] = int(0 < taken == self.prompt_left[seat])
            left -= taken
        shape = StepShape(int(rows.sum()), int(scored.sum()), entries)
        seconds = self.machine(shape.rows, shape.scored_rows, shape.cache_entries)
        seconds *= self.generator.lognormal(0, 0.02)
        self.now_s += seconds
        self.steps += 1
        self.rows += shape.rows
        self.sequence_steps += int(decodes.sum())
        self.policy.observe(shape, seconds)
        self._apply(widths, verifies, decodes, rows)

    def _apply(self, widths, verifies, decodes, rows):
        gained = np.zeros(self.text.size, dtype=np.int64)
        prompts = np.flatnonzero(~decodes)
        self.prompt_left[prompts] -= rows[prompts]
        gained[prompts[(self.prompt_left[prompts] == 0)]] = 1
        singles = np.flatnonzero(decodes & ~verifies & (widths == 0))
        gained[singles] = 1
        if singles.size:
            self.policy.observe_singles(singles, self._uncertainty(singles))
        rounds = np.flatnonzero(verifies)
        if rounds.size:
            offered = self.window[rounds] - 1
            confirmed = self._confirmed(rounds, offered)
            self.policy.observe_rounds(rounds, offered, confirmed, self._uncertainty(rounds))
            gained[rounds] = confirmed + 1
        self.window[rounds] = 0
        drafts = decodes & (widths > 0)
        self.window[drafts] = widths[drafts]
        self._count(gained)

    def _uncertainty(self, seats):
        return self.texts.uncertainty[self.text[seats], self.made[seats]]

    def _confirmed(self, seats, offered):
        distance = np.arange(1, int(offered.max()) + 1)
        positions = self.made[seats][:, None] + distance - 1
        hits = self.texts.reach[self.text[seats][:, None], positions] >= distance
        hits &= distance <= offered[:, None]
        return np.where(hits.all(1), distance.size, hits.argmin(1))

    def _count(self, gained):
        answer = self.texts.answer_tokens[self.text]
        gained = np.minimum(gained, answer - self.made)
        first = (self.made == 0) & (gained > 0)
        self.first_tokens += (self.now_s - self.arrived_s[first]).tolist()
        self.first_s[first] = self.last_s[first] = self.now_s
        later = np.flatnonzero((gained > 0) & ~first)
        gaps = (self.now_s - self.last_s[later]) / gained[later]
        self.gaps.append(np.repeat(gaps, gained[later]))
        self.last_s[later] = self.now_s
        self.made += gained
        self.tokens += int(gained.sum())
        for seat in np.flatnonzero(self.made >= answer).tolist():
            self.request_times.append(
                (self.now_s - self.first_s[seat]) / max(int(self.made[seat]) - 1, 1)
            )
            self._admit(seat)


def simulate(
    texts: Texts, machine: str, policy: str, *, concurrency: int, num_tokens: int, seed: int = 0
) -> Outcome:
    """Run a policy by name: ar, width_<w> or auto."""
    generator = np.random.default_rng([seed, 13])
    if policy == "auto":
        chosen = Auto(concurrency, MACHINES[machine], generator)
    else:
        chosen = FixedWidth(0 if policy == "ar" else int(policy.removeprefix("width_")))
    simulator = Simulator(texts, MACHINES[machine], chosen, concurrency=concurrency, seed=seed)
    return simulator.run(num_tokens, num_tokens // 4)
