"""Evo (our reading) on three generated tasks: one network that is both, and each half alone.

Prompts are seen, not said. Token rows say the next symbol of the answer; latent rows say their
own, from canvases that begin anywhere in the answer and reach to its end.

    loss = sum over tasks of weight * (NLL of latent rows with t > 0 + share * NLL of next symbols)

Shapes: B texts of L tokens, A of an answer, S latent rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from weights.config_fields import Json
from weights.training.data.sudoku import BOX_COLUMNS, BOX_ROWS, NUM_CELLS, SIZE
from weights.training.data.tasks import (
    CANVAS_WIDTH,
    SUDOKU,
    SYMBOLS,
    TASKS,
    Task,
    TaskTexts,
)
from weights.training.data.text import END_OF_TEXT_ID
from weights.training.evo import calibration
from weights.training.evo_checkpoint import served_config, served_tensors
from weights.training.evo_levels import MeasuredEntropy, draw_levels
from weights.training.evo_network import Canvases, EvoNetwork, EvoShape
from weights.training.layers import mean_where, token_nll
from weights.training.loop import Trainable

# Texts of a step, and weights of the loss: sudoku has the most to learn.
TEXTS_OF_STEP = {"sudoku": 64, "chain": 16, "add": 32}
_WEIGHTS = {"sudoku": 0.6, "chain": 0.15, "add": 0.25}
_NEXT_SHARE = 0.5
# How latents move where a request does not say: only what is certain enough moves, and where
# nothing is, the most certain symbol is drawn.
DECODING: dict[str, Json] = {
    "delta_min": 0.0,
    "delta_max": 0.25,
    "finalize_uncertainty": 0.01,
    "jump_uncertainty": 0.01,
    "order": "any",
    "max_refine_steps": 1,
}
# Canvases beside every text.
_CANVASES = 2
# Every so many steps canvases are as wide as they are served: what follows the end are ends.
_WIDE_EVERY = 8


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows a network is trained on."""

    says_next: bool = True
    says_own: bool = True


class TaskModel(Trainable):
    """The network under its objective."""

    def __init__(self, shape: EvoShape, rows: Rows, *, generator: torch.Generator) -> None:
        super().__init__()
        self.rows = rows
        self.network = EvoNetwork(shape, generator=generator)
        self.entropy = MeasuredEntropy(shape.num_levels)
        _begin_positions(self.network, generator)

    def orthogonal_parameters(self) -> set[str]:
        """The matrices of the layers."""
        return {
            f"network.{name}"
            for name, value in self.network.named_parameters()
            if ".layers." in name and value.ndim == 2
        }

    def losses(self, tokens: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Parts of the loss of padded texts [B, L], by task and kind of row."""
        losses = {}
        is_wide = int(torch.randint(_WIDE_EVERY, (), generator=generator, device=tokens.device))
        for task, texts in split_tasks(tokens):
            cells = CANVAS_WIDTH if is_wide == 0 else task.answer_length
            own, following = self._task_losses(task, texts, cells, generator)
            weight = _WEIGHTS[task.name]
            if self.rows.says_own:
                losses[f"{task.name}_own"] = weight * own
            if self.rows.says_next:
                losses[f"{task.name}_next"] = weight * _NEXT_SHARE * following
        return losses

    def _task_losses(
        self, task: Task, texts: Tensor, cells: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """NLL of latent rows and of next symbols, in nats per symbol."""
        network, prompt = self.network, task.prompt_length
        tokens = texts[:, : task.length]
        if not self.rows.says_own:
            settled, _ = network(tokens[:, :-1])
            return tokens.new_zeros(()).float(), _next_nll(network, settled, tokens, prompt)
        targets = texts[:, prompt : prompt + cells].repeat(1, _CANVASES)
        canvases = self._canvases(targets, prompt, task.answer_length, generator)
        z = network.hide(targets, canvases.levels, generator)
        likelihood = network.likelihood(z, canvases.levels)
        latents = network.embed_latents(likelihood, canvases.levels)
        # The end of a text is not seen by anything.
        settled, drafted = network(tokens[:, :-1], latents, canvases)
        nll = token_nll(network.head(drafted).float() + likelihood, targets)
        is_asked = (canvases.levels > 0) & (canvases.positions >= canvases.starts)
        if torch.is_grad_enabled():
            self.entropy.follow(nll[is_asked], canvases.levels[is_asked])
        return mean_where(nll, is_asked), _next_nll(network, settled, tokens, prompt)

    def _canvases(
        self, targets: Tensor, prompt: int, answer: int, generator: torch.Generator
    ) -> Canvases:
        """Canvases beside each other for targets [B, S], each of which begins in the answer.

        Rows before the beginning of a canvas are no rows of it: they form a group that no row
        of the canvas sees.
        """
        count, rows = targets.shape
        cells = rows // _CANVASES
        device = targets.device

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=device)

        offset = torch.arange(cells, device=device)
        copies = torch.arange(_CANVASES, device=device).repeat_interleave(cells)
        # Half of the canvases begin with the answer, as decoding does.
        begins = (uniform(count, _CANVASES) * answer).long()
        begins = torch.where(uniform(count, _CANVASES) < 0.5, 0, begins)
        begins = begins.repeat_interleave(cells, dim=1)
        offsets = offset.repeat(_CANVASES).expand(count, rows)
        is_before = offsets < begins
        place = (offsets - begins + 0.5) / (cells - begins)
        by_canvas = place.reshape(count * _CANVASES, cells)
        levels = draw_levels(by_canvas, self.entropy, generator).view(count, rows)
        return Canvases(
            positions=prompt + offsets,
            starts=prompt + begins,
            groups=copies + _CANVASES * is_before,
            levels=levels,
        )

    def figures(self, tokens: Tensor, generator: torch.Generator) -> dict[str, Json]:
        """Held-out losses, and the entropy by t as it was measured."""
        losses = self.losses(tokens, generator)
        measured = self.measured_entropy(tokens, generator)
        return {
            "losses": {name: float(loss) for name, loss in losses.items()},
            "entropy_share_as_measured": [list(pair) for pair in measured],
            "calibration": calibration(measured),
        }

    @torch.no_grad()
    def measured_entropy(
        self, tokens: Tensor, generator: torch.Generator
    ) -> list[tuple[float, float]]:
        """Pairs of t and mean entropy / log V of whole canvases all of whose rows are at t.

        The mean is over tasks; t ascends from 0 to 1.
        """
        shape = self.network.shape
        largest = torch.tensor(float(shape.vocab_size)).log()
        points = []
        for level in range(0, shape.num_levels + 1, max(shape.num_levels // 32, 1)):
            entropies = [
                self._entropy(task, texts, level, generator) for task, texts in split_tasks(tokens)
            ]
            mean = torch.stack(entropies).mean() / largest
            points.append((level / shape.num_levels, float(mean)))
        return points

    def _entropy(self, task: Task, texts: Tensor, level: int, generator: torch.Generator) -> Tensor:
        prompt = task.prompt_length
        answers = texts[:, prompt : task.length]
        canvases = whole_canvases(answers, prompt, torch.full_like(answers, level))
        z = self.network.hide(answers, canvases.levels, generator)
        log_probs = say_own(self.network, texts[:, :prompt], z, canvases).log_softmax(dim=-1)
        return -(log_probs.exp() * log_probs).sum(dim=-1).mean()

    def tensors(self) -> dict[str, Tensor]:
        """The checkpoint's tensors by name."""
        return served_tensors(self.network)

    def config(self, figures: dict[str, Json]) -> dict[str, Json]:
        """config.json, with the calibration that was measured."""
        return served_config(
            self.network.shape,
            width=CANVAS_WIDTH,
            calibration=figures["calibration"],
            decoding=DECODING,
        )


@torch.no_grad()
def _begin_positions(network: EvoNetwork, generator: torch.Generator) -> None:
    """Positions of a sudoku begin with codes of their cell's row, column and box.

    The same in prompt and answer. A short training has no time to find out from puzzles alone
    which of 36 cells belong together; the table is learned on from there.
    """
    table = network.model.embed_positions
    if table is None:
        return
    cells = torch.arange(NUM_CELLS)
    rows, columns = cells // SIZE, cells % SIZE
    boxes = rows // BOX_ROWS * (SIZE // BOX_COLUMNS) + columns // BOX_COLUMNS
    width = table.weight.shape[1]
    codes = torch.randn(3, SIZE, width, generator=generator) * width**-0.5
    coded = codes[0, rows] + codes[1, columns] + codes[2, boxes]
    for first in (SUDOKU.prompt_length - 1 - NUM_CELLS, SUDOKU.prompt_length):
        table.weight[first : first + NUM_CELLS] += coded.to(table.weight.device)


def _next_nll(network: EvoNetwork, settled: Tensor, tokens: Tensor, prompt: int) -> Tensor:
    """Of the answer's symbols, from the rows before them."""
    return token_nll(network.head(settled[:, prompt - 1 :]), tokens[:, prompt:]).mean()


def whole_canvases(answers: Tensor, prompt: int, levels: Tensor) -> Canvases:
    """One canvas over all of every answer [B, A]."""
    positions = prompt + torch.arange(answers.shape[1], device=answers.device)
    return Canvases(
        positions=positions.expand_as(answers),
        starts=torch.full_like(answers, prompt),
        groups=torch.zeros_like(answers),
        levels=levels,
    )


def say_own(network: EvoNetwork, tokens: Tensor, z: Tensor, canvases: Canvases) -> Tensor:
    """Logits [B, S, V] float32 of latents z behind tokens [B, L], output prior included."""
    likelihood = network.likelihood(z, canvases.levels)
    latents = network.embed_latents(likelihood, canvases.levels)
    _, drafted = network(tokens, latents, canvases)
    return network.head(drafted).float() + likelihood


def split_tasks(tokens: Tensor) -> list[tuple[Task, Tensor]]:
    """The texts [n, L] of every task in padded texts [B, L], told by their first symbol."""
    first = {task.name: SYMBOLS.index(task.name[0]) for task in TASKS}
    parts = [(task, tokens[tokens[:, 0] == first[task.name]]) for task in TASKS]
    return [(task, texts) for task, texts in parts if texts.shape[0]]


@dataclass(frozen=True, slots=True)
class TaskBatches:
    """Padded texts of every task; which ones a step gets depends on seed and step alone."""

    texts: TaskTexts
    counts: dict[str, int]
    seed: int

    def generator(self, step: int, *, device: torch.device) -> torch.Generator:
        """Where the randomness of a step comes from."""
        return torch.Generator(device).manual_seed(self.seed * 1_000_003 + step)

    def batch(self, step: int) -> Tensor:
        """Texts [B, L] int64 of all tasks behind one another, padded by ends of text."""
        generator = self.generator(step, device=torch.device("cpu"))
        length = SUDOKU.prompt_length + CANVAS_WIDTH
        parts = []
        for task in TASKS:
            texts = self.texts.draw(task, self.counts[task.name], generator)
            ends = torch.full((texts.shape[0], length - texts.shape[1]), END_OF_TEXT_ID)
            parts.append(torch.cat((texts, ends), dim=1))
        return torch.cat(parts)
