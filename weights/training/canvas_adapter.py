"""The recipe of the canvas adapter: the frozen base taught to speak of several next tokens.

Texts are the base's own answers; the targets are its own distributions, found by running the text
once. Canvases are cut off at random places. Half of them are empty (every row at t = 1), as drafts
that the base verifies are; the others carry latents at levels of t that are equal (diagonal) or
grow with the position (wavefront), as a canvas that decides by itself does.
Our reading of Evo, arXiv 2603.06617: `weights/families/evo.py` says what is ours.

Shapes as in `canvas_network`.
"""

import json
import logging
import math
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weights.training.answers import AnsweredPrompt
from weights.training.canvas_network import (
    AdapterShape,
    CanvasAdapter,
    Canvases,
    FrozenBase,
    SettledText,
    Targets,
    base_targets,
    distillation_loss,
    sample_vocabulary,
)
from weights.training.evo import pool_rising

log = logging.getLogger(__name__)

_LONGEST_TEXT = 320
_EMPTY_SHARE, _DIAGONAL_SHARE = 0.5, 0.2
# Of the rows of a wavefront that are ready, that is at t = 0.
_READY_SHARE = 0.1
_WEIGHT_DECAY_BY_OFFSET = 0.85
_BEST_TOKENS, _RANDOM_TOKENS = 48, 2048
_EVALUATION_TEXTS = 60
_EVALUATION_CANVASES = 12
_CALIBRATION_POINTS, _CALIBRATION_CANVASES = 16, 2


@dataclass(frozen=True, slots=True)
class AdapterRecipe:
    """Everything that decides what comes out, with the answers and the base.

    steps:       of the optimiser
    canvases:    per step, all over one text
    width:       rows of a canvas
    warm_up:     steps until the learning rate is reached
    ema_decay:   of the averaged weights, which are what is kept
    """

    shape: AdapterShape = field(default_factory=AdapterShape)
    steps: int = 6000
    canvases: int = 40
    width: int = 8
    learning_rate: float = 1e-3
    warm_up: int = 100
    ema_decay: float = 0.998
    seed: int = 1
    save_every: int = 250


@dataclass(frozen=True, slots=True)
class _Batch:
    token_ids: Tensor
    canvases: Canvases
    known: Tensor
    weights: Tensor


class AdapterTraining:
    """A run of the recipe over one base; it can be stopped and resumed between any two steps."""

    def __init__(
        self, base: FrozenBase, answers: list[AnsweredPrompt], recipe: AdapterRecipe, folder: Path
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.base = base
        self.recipe = recipe
        self.folder = folder
        self.adapter = CanvasAdapter(base, recipe.shape)
        self.average = {k: v.detach().clone() for k, v in self.adapter.named_parameters()}
        self.step = 0
        self._embeddings = base.embeddings()
        self._targets: dict[tuple[int, ...], Targets] = {}
        texts = [a for a in answers if len(a.answer_ids) > recipe.width]
        self._texts = [a for a in texts if not a.prompt.is_held_out]
        self._held_out = [a for a in texts if a.prompt.is_held_out]
        if not self._texts or not self._held_out:
            raise ValueError("training needs answers to prompts that are held out and to others")
        decayed: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, parameter in self.adapter.named_parameters():
            (decayed if name.startswith(("down", "up")) else others).append(parameter)
        self._optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
            lr=recipe.learning_rate,
            betas=(0.9, 0.98),
        )

    def run(self, *, minutes: float | None = None) -> None:
        """Train to the last step, or until the time is over; the state is saved either way."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stop_s = math.inf if minutes is None else time.monotonic() + 60 * minutes
        started_s, first = time.monotonic(), self.step
        while self.step < self.recipe.steps and time.monotonic() < stop_s:
            figures = self._train_step()
            self.step += 1
            if self.step % 25 == 0:
                seconds = (time.monotonic() - started_s) / (self.step - first)
                self._log({**figures, "seconds_per_step": round(seconds, 3)})
            if self.step % self.recipe.save_every == 0:
                self.save()
                self._log({f"held_out_{k}": v for k, v in self.evaluate().items()})
        self.save()
        self._log({f"held_out_{k}": v for k, v in self.evaluate().items()})

    def _train_step(self) -> dict[str, float]:
        generator = random.Random(self.recipe.seed * 1_000_003 + self.step)
        noise = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step)
        text = self._texts[generator.randrange(len(self._texts))]
        batch = self._batch(text, self.recipe.canvases, generator, noise)
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate()
        settled = self.base.settle(batch.token_ids)
        hidden = self.base.draft(settled, batch.canvases, self.adapter)
        loss = self._loss(hidden, batch, self._targets_of(text, settled), noise)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0)
        self._optimizer.step()
        # A young average follows fast.
        decay = min(self.recipe.ema_decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, parameter in self.adapter.named_parameters():
                self.average[name].lerp_(parameter, 1 - decay)
        return {"loss": round(loss.item(), 4)}

    def _targets_of(self, text: AnsweredPrompt, settled: SettledText) -> Targets:
        """The base's own distributions over a text; kept, as a text comes up many times."""
        key = text.prompt.token_ids
        if key not in self._targets:
            targets = base_targets(settled.hidden, self.base.head, num_best=_BEST_TOKENS)
            self._targets[key] = Targets(targets.ids.int(), targets.shares.bfloat16())
        return self._targets[key]

    def _loss(
        self, hidden: Tensor, batch: "_Batch", targets: Targets, noise: torch.Generator
    ) -> Tensor:
        places = (batch.canvases.origins + batch.canvases.offsets).clamp(
            max=batch.token_ids.shape[0] - 1
        )
        ids, shares = targets.ids[places].long(), targets.shares[places].float()
        is_known = batch.known >= 0
        # The token itself: where a latent tells something of it, the base's word counts less.
        ids[is_known, 0] = batch.known[is_known]
        shares[is_known] = 0
        shares[is_known, 0] = 1
        vocabulary = sample_vocabulary(
            ids, size=self.base.head.shape[0], num_random=_RANDOM_TOKENS, generator=noise
        )
        wanted = torch.zeros(ids.shape[0], vocabulary.ids.shape[0])
        wanted.scatter_add_(1, torch.searchsorted(vocabulary.ids, ids), shares)
        weights = batch.weights / batch.weights.sum()
        return distillation_loss(hidden, self.base.head, vocabulary, wanted=wanted, weights=weights)

    def _learning_rate(self) -> float:
        recipe = self.recipe
        if self.step < recipe.warm_up:
            return recipe.learning_rate * (self.step + 1) / recipe.warm_up
        share = (self.step - recipe.warm_up) / max(recipe.steps - recipe.warm_up, 1)
        return recipe.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))

    def _batch(
        self,
        text: AnsweredPrompt,
        num_canvases: int,
        generator: random.Random,
        noise: torch.Generator,
        *,
        level: int | None = None,
    ) -> _Batch:
        """Canvases cut off at random places of an answer, at random levels or all at one."""
        width, levels = self.recipe.width, self.recipe.shape.num_levels
        ids = torch.tensor((text.prompt.token_ids + text.answer_ids)[:_LONGEST_TEXT])
        first, last = len(text.prompt.token_ids), ids.shape[0] - 2
        starts = range(min(first, last), last + 1)
        chosen = generator.sample(starts, min(num_canvases, len(starts)))
        patterns = [
            _levels(width, levels, generator) if level is None else [level] * width for _ in chosen
        ]
        held_at = torch.tensor(patterns).flatten()
        origins = torch.tensor(chosen).repeat_interleave(width)
        offsets = torch.arange(width).repeat(len(chosen))
        places = origins + offsets
        is_inside = places + 1 < ids.shape[0]
        held = ids[places.clamp(max=ids.shape[0] - 1)]
        t = (held_at.float() / levels)[:, None]
        size = self._embeddings.shape[1]
        white = torch.randn((held.shape[0], size), generator=noise)
        latents = (1 - t) * self._embeddings[held] + t * white
        # The latent of the next row tells something of what this row speaks of.
        told = torch.cat((held_at.view(-1, width)[:, 1:], torch.full((len(chosen), 1), levels)), 1)
        spoken = ids[(places + 1).clamp(max=ids.shape[0] - 1)]
        return _Batch(
            token_ids=ids,
            canvases=Canvases(latents, held_at, origins, offsets, width),
            known=torch.where(told.flatten() < levels, spoken, -1),
            weights=is_inside.float() * _WEIGHT_DECAY_BY_OFFSET ** offsets.float(),
        )

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """What empty canvases of the averaged weights draft over held-out answers.

        agreement_i: share of rows i whose best token is the base's
        run:         leading rows of a canvas that agree, on average; and by kind of prompt
        """
        kept = {k: v.detach().clone() for k, v in self.adapter.named_parameters()}
        self._use(self.average)
        agreements, kinds = [], []
        for number, text in enumerate(self._held_out[:_EVALUATION_TEXTS]):
            generator, noise = random.Random(number), torch.Generator().manual_seed(number)
            batch = self._batch(
                text, _EVALUATION_CANVASES, generator, noise, level=self.recipe.shape.num_levels
            )
            settled = self.base.settle(batch.token_ids)
            hidden = self.base.draft(settled, batch.canvases, self.adapter)
            places = batch.canvases.origins + batch.canvases.offsets
            own = settled.hidden[places.clamp(max=batch.token_ids.shape[0] - 1)]
            drafted, wanted = (
                torch.nn.functional.linear(rows, self.base.head).argmax(-1)
                for rows in (hidden, own)
            )
            equal = (drafted == wanted) & (batch.weights > 0)
            agreements.append(equal.view(-1, self.recipe.width).float())
            kinds += [text.prompt.kind] * agreements[-1].shape[0]
        self._use(kept)
        agreement = torch.cat(agreements)
        runs = agreement.cumprod(1).sum(1)
        figures = {f"agreement_{i}": _rounded(agreement[:, i].mean()) for i in range(3)}
        figures["run"] = _rounded(runs.mean())
        for kind in sorted(set(kinds)):
            chosen = torch.tensor([k == kind for k in kinds])
            figures[f"run_{kind}"] = _rounded(runs[chosen].mean())
        return figures

    @torch.no_grad()
    def calibrate(self) -> list[tuple[float, float]]:
        """(t, mean entropy / log V) of canvases all at t over held-out answers, made to rise."""
        kept = {k: v.detach().clone() for k, v in self.adapter.named_parameters()}
        self._use(self.average)
        levels, largest = self.recipe.shape.num_levels, math.log(self.base.head.shape[0])
        count = min(_CALIBRATION_POINTS, levels)
        points = [round(i * levels / count) for i in range(count + 1)]
        entropies: list[list[Tensor]] = [[] for _ in points]
        for number, text in enumerate(self._held_out[:_EVALUATION_TEXTS]):
            for found, level in zip(entropies, points, strict=True):
                generator, noise = random.Random(number), torch.Generator().manual_seed(number)
                batch = self._batch(text, _CALIBRATION_CANVASES, generator, noise, level=level)
                hidden = self.base.draft(
                    self.base.settle(batch.token_ids), batch.canvases, self.adapter
                )
                log_p = torch.nn.functional.linear(hidden, self.base.head).float().log_softmax(-1)
                # The last row's next position is on no canvas.
                inside = (batch.weights > 0) & (batch.canvases.offsets < batch.canvases.width - 1)
                found.append(-(log_p.exp() * log_p).sum(-1)[inside])
        self._use(kept)
        means = [float(torch.cat(found).mean()) / largest for found in entropies]
        rising = pool_rising(means)
        return [
            (level / levels, round(mean, 6)) for level, mean in zip(points, rising, strict=True)
        ]

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights by the names of the checkpoint, in bfloat16."""
        self._use(self.average)
        adapter = self.adapter
        with torch.no_grad():
            found = {
                "latent.input.weight": adapter.input,
                "latent.time.weight": adapter.time_table(),
                "latent.offset.weight": adapter.offset,
            }
            for name, down in adapter.down.items():
                layer, matrix = name.split("_", 1)
                found[f"latent.layers.{layer}.{matrix}.down.weight"] = down
                found[f"latent.layers.{layer}.{matrix}.up.weight"] = adapter.up[name]
            return {name: value.detach().bfloat16().contiguous() for name, value in found.items()}

    def _use(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.adapter.named_parameters():
                parameter.copy_(weights[name])

    def save(self) -> None:
        """Write everything that a resumed run needs."""
        tensors = {f"adapter.{k}": v.detach() for k, v in self.adapter.named_parameters()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        named = list(self.adapter.named_parameters())
        for name, parameter in named:
            state = self._optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{k}": v for k, v in state.items()}
        contiguous = {k: v.contiguous() for k, v in tensors.items()}
        written = self.folder / "state.new"
        save_file(contiguous, written, metadata={"step": str(self.step)})
        written.replace(self.folder / "state.safetensors")
        (self.folder / "recipe.json").write_text(
            json.dumps({**asdict(self.recipe), "step": self.step}, indent=1)
        )

    def resume(self) -> None:
        """Go on where `save` was called last; without a saved state, begin."""
        path = self.folder / "state.safetensors"
        if not path.is_file():
            return
        tensors = load_file(path)
        self.step = int(json.loads((self.folder / "recipe.json").read_text())["step"])
        self._use({k[8:]: v for k, v in tensors.items() if k.startswith("adapter.")})
        self.average = {k[8:]: v for k, v in tensors.items() if k.startswith("average.")}
        for name, parameter in self.adapter.named_parameters():
            begin = f"optimizer.{name}."
            state = {k[len(begin) :]: v for k, v in tensors.items() if k.startswith(begin)}
            if state:
                self._optimizer.state[parameter] = state

    def _log(self, figures: dict[str, float]) -> None:
        line = {"step": self.step, **figures}
        log.info("%s", line)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _levels(width: int, levels: int, generator: random.Random) -> list[int]:
    """The levels of t of one canvas: empty, diagonal, or a wavefront with some rows ready."""
    kind = generator.random()
    if kind < _EMPTY_SHARE:
        return [levels] * width
    if kind < _EMPTY_SHARE + _DIAGONAL_SHARE:
        return [generator.randint(1, levels)] * width
    front = generator.uniform(-0.3, 1.0)
    slope = generator.uniform(0.05, 0.6)
    chosen = []
    for i in range(width):
        t = front + slope * i + generator.gauss(0, 0.1)
        t = 0.0 if generator.random() < _READY_SHARE else min(max(t, 0.0), 1.0)
        chosen.append(round(t * levels))
    return chosen


def _rounded(value: Tensor) -> float:
    return round(float(value), 4)
