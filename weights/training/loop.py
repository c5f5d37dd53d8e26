"""The training loop of every recipe: AdamW, a moving average, a cosine, saved as it goes.

Batches and noise depend on seed and step only, so a run that was stopped and resumed computes
what an uninterrupted one does. The state is one safetensors file, replaced in one move.

Shapes: B texts of L tokens.
"""

import json
import logging
import math
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from weights.config_fields import Json

log = logging.getLogger(__name__)

STATE_FILE = "state.safetensors"
LOG_FILE = "training_log.jsonl"
_BETAS = (0.9, 0.95)
# What optimisers keep of a parameter, as PyTorch names it.
_MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "muon": ("momentum_buffer",)}
_GRADIENT_NORM = 1.0


class Batches(Protocol):
    """Texts to train on; which ones a step gets depends on the number of the step alone."""

    def batch(self, step: int) -> Tensor:
        """The texts [B, L] int64 of a step."""
        ...

    def generator(self, step: int, *, device: torch.device) -> torch.Generator:
        """Where the other randomness of a step comes from."""
        ...


class Trainable(nn.Module, ABC):
    """A network under its objective."""

    def orthogonal_parameters(self) -> set[str]:
        """Names of matrices whose updates Muon makes orthogonal; none for AdamW throughout."""
        return set()

    @abstractmethod
    def losses(self, tokens: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Parts of the loss of texts [B, L] by name, in nats per token; their sum is minimised."""

    @abstractmethod
    def figures(self, tokens: Tensor, generator: torch.Generator) -> dict[str, Json]:
        """What is reported of held-out texts [B, L] when training is done."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The checkpoint's tensors by name."""

    @abstractmethod
    def config(self, figures: dict[str, Json]) -> dict[str, Json]:
        """The checkpoint's config.json."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The course of a run.

    num_steps:      updates at most; `minutes` may end it earlier
    batch_size:     texts a step
    length:         tokens of a text
    learning_rate:  at its highest; it rises over warmup_steps and falls to a tenth by a cosine
    average_decay:  of the moving average of the weights
    """

    num_steps: int
    batch_size: int
    length: int
    learning_rate: float
    warmup_steps: int = 50
    average_decay: float = 0.995
    weight_decay: float = 0.1
    log_every: int = 25
    measure_every: int = 250
    save_every: int = 250


class Trainer:
    """A model in training, and where it has got to."""

    def __init__(
        self,
        model: Trainable,
        schedule: Schedule,
        folder: Path,
        *,
        seed: int,
        minutes: float,
        precision: torch.dtype,
    ) -> None:
        """Begin in a folder, which gets state and log.

        minutes:   of training, over all resumed runs
        precision: of matrix products; weights and their averages are float32
        """
        self.model = model
        self.step = 0
        self.elapsed_s = 0.0
        self.schedule = schedule
        self._folder = folder
        self._seed = seed
        self._limit_s = 60 * minutes
        self._precision = precision
        self._parameters = dict(model.named_parameters())
        self._device = next(iter(self._parameters.values())).device
        self._average = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._muon_names = model.orthogonal_parameters()
        self._optimizers = _optimizers(self._parameters, self._muon_names, schedule)

    @property
    def is_done(self) -> bool:
        """Whether the steps or the time are used up."""
        return self._progress() >= 1

    def run(self, trained: Batches, held_out: Tensor) -> bool:
        """Train to the end, or until SIGTERM or SIGINT; true at the end. Saves either way."""
        begun_at = self.step
        with _stop_signals() as stop:
            while not self.is_done and not stop.is_set:
                self._update(trained)
                if self.step % self.schedule.measure_every == 0:
                    self._measure(held_out)
                if self.step % self.schedule.save_every == 0:
                    self.save()
        if self.is_done and self.step > begun_at and self.step % self.schedule.measure_every:
            self._measure(held_out)
        self.save()
        return self.is_done

    def _progress(self) -> float:
        """Share of the run that is over, by steps or by time, whichever is more."""
        return max(self.step / self.schedule.num_steps, self.elapsed_s / self._limit_s)

    def _learning_rate(self) -> float:
        schedule = self.schedule
        warm = min(1.0, (self.step + 1) / max(1, schedule.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self._progress())))
        return schedule.learning_rate * warm * (0.1 + 0.9 * cosine)

    def _update(self, trained: Batches) -> None:
        started = time.monotonic()
        rate = self._learning_rate()
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        tokens = trained.batch(self.step).to(self._device)
        generator = trained.generator(self.step, device=self._device)
        with torch.autocast(
            self._device.type, self._precision, enabled=self._precision != torch.float32
        ):
            losses = self.model.losses(tokens, generator)
        self.model.zero_grad(set_to_none=True)
        torch.autograd.backward(sum(losses.values(), torch.zeros((), device=self._device)))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), _GRADIENT_NORM)
        for optimizer in self._optimizers:
            optimizer.step()
        self._follow()
        self.step += 1
        self.elapsed_s += time.monotonic() - started
        if self.step % self.schedule.log_every == 0:
            found = losses | {"gradient_norm": norm}
            parts = {name: round(float(value.detach()), 4) for name, value in found.items()}
            self._log("step", parts | {"learning_rate": rate})

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the weights, faster while it is young."""
        decay = min(self.schedule.average_decay, (1 + self.step) / (10 + self.step))
        for name, value in self._parameters.items():
            self._average[name].lerp_(value.detach(), 1 - decay)

    @contextmanager
    def averaged(self, *, rounded_to: torch.dtype = torch.float32) -> Iterator[Trainable]:
        """The model with its averaged weights, as stored in a type, while the context lasts."""
        trained = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._assign({name: value.to(rounded_to) for name, value in self._average.items()})
        try:
            yield self.model
        finally:
            self._assign(trained)

    @torch.no_grad()
    def _assign(self, values: dict[str, Tensor]) -> None:
        for name, value in self._parameters.items():
            value.copy_(values[name])

    @torch.no_grad()
    def _measure(self, held_out: Tensor) -> None:
        """Log the held-out losses of the averaged weights."""
        generator = torch.Generator(self._device).manual_seed(self._seed * 1_000_003)
        with self.averaged() as model:
            losses = model.losses(held_out.to(self._device), generator)
        self._log("held_out", {name: round(float(loss), 4) for name, loss in losses.items()})

    def _log(self, kind: str, values: dict[str, float]) -> None:
        line = {"kind": kind, "step": self.step, "elapsed_s": round(self.elapsed_s, 1)} | values
        with (self._folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        log.info("%s", json.dumps(line))

    def save(self) -> None:
        """Write the state; what was there before stays until the new one is whole."""
        tensors = {f"average.{name}": value for name, value in self._average.items()}
        for name, value in self._parameters.items():
            tensors[f"weight.{name}"] = value.detach()
            moments = self._moments(name)
            for moment in self._moment_names(name):
                tensors[f"{moment}.{name}"] = moments.get(moment, torch.zeros_like(value))
        place = self._folder / STATE_FILE
        unfinished = place.with_suffix(".unfinished")
        metadata = {"step": str(self.step), "elapsed_s": repr(self.elapsed_s)}
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, unfinished, metadata
        )
        os.replace(unfinished, place)

    def restore(self) -> None:
        """Go on from the folder's state; raises ValueError when there is none that fits."""
        place = self._folder / STATE_FILE
        if not place.is_file():
            raise ValueError(f"there is nothing to resume in {self._folder}")
        with safe_open(place, framework="pt", device=str(self._device)) as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        shapes = {name: value.shape for name, value in self._parameters.items()}
        if {f"weight.{name}": shape for name, shape in shapes.items()} != {
            name: value.shape for name, value in stored.items() if name.startswith("weight.")
        }:
            raise ValueError(f"the state in {self._folder} is of a network of other sizes")
        self.step, self.elapsed_s = int(metadata["step"]), float(metadata["elapsed_s"])
        self._assign({name: stored[f"weight.{name}"] for name in shapes})
        for name in self._parameters:
            self._average[name] = stored[f"average.{name}"]
            self._moments(name).update(
                {moment: stored[f"{moment}.{name}"] for moment in self._moment_names(name)}
            )
            if name not in self._muon_names:
                self._moments(name)["step"] = torch.tensor(float(self.step))
        self._cut_log()

    def _moments(self, name: str) -> dict[str, Tensor]:
        """What the parameter's optimiser keeps of it."""
        optimizer = self._optimizers[1 if name in self._muon_names else 0]
        kept: dict[str, Tensor] = optimizer.state[self._parameters[name]]
        return kept

    def _moment_names(self, name: str) -> tuple[str, ...]:
        return _MOMENTS["muon" if name in self._muon_names else "adamw"]

    def _cut_log(self) -> None:
        """Drop what was logged after the state was saved."""
        place = self._folder / LOG_FILE
        if not place.is_file():
            return
        lines = place.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["step"] <= self.step]
        place.write_text("".join(kept), encoding="utf-8")


def _optimizers(
    parameters: dict[str, nn.Parameter], muon_names: set[str], schedule: Schedule
) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices that are named.

    From: Jordan et al. 2024, Muon; updates as large as AdamW's, as in Liu et al. 2025, Muon is
    scalable for LLM training, arXiv 2502.16982.
    """
    others = {name: value for name, value in parameters.items() if name not in muon_names}
    groups: list[dict[str, Any]] = [
        {"params": [value for value in others.values() if value.ndim >= 2]},
        {"params": [value for value in others.values() if value.ndim < 2], "weight_decay": 0.0},
    ]
    rate, decay = schedule.learning_rate, schedule.weight_decay
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=rate, betas=_BETAS, weight_decay=decay)
    ]
    if muon_names:
        matrices = [value for name, value in parameters.items() if name in muon_names]
        found.append(
            torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    return found


class _Stop:
    is_set = False


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """A flag that SIGTERM and SIGINT set; the step under way is finished first."""
    stop = _Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        log.warning("stopping after this step: %s", signal.Signals(number).name)
        stop.is_set = True

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
