"""`estuary train evo-tasks`: Evo (our reading) on three generated tasks, from a seed alone.

OUT/training holds what a run needs to go on (state, log, puzzles); OUT itself gets the checkpoint
when the run is done.
"""

import argparse
import json
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weights.config_fields import Json
from weights.training.data.sudoku import Puzzles
from weights.training.data.tasks import SYMBOLS, TaskTexts, symbol_tokenizer
from weights.training.evo_network import EvoShape
from weights.training.evo_tasks import Rows, TaskBatches, TaskModel
from weights.training.export import ModelCard, export
from weights.training.loop import LOG_FILE, Schedule, Trainer
from weights.training.recipe import Recipe

log = logging.getLogger(__name__)

_WORK = "training"
_SETTINGS, _PUZZLES = "settings.json", "puzzles.safetensors"
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Puzzles that training varies, and those that nothing is trained on; seeds keep them apart.
NUM_PUZZLES = 12_000
HELD_OUT_SEED = 999_983
_MEASURED = {"sudoku": 32, "chain": 32, "add": 32}
# Which rows are trained: both, or each half alone for comparison.
ROWS = {
    "both": Rows(),
    "ar": Rows(says_own=False),
    "diffusion": Rows(says_next=False),
}


@dataclass(frozen=True, slots=True)
class TaskScale:
    """Sizes, texts of a step, and course of a run."""

    shape: EvoShape
    counts: dict[str, int]
    schedule: Schedule


SCALES = {
    "cpu": TaskScale(
        EvoShape(
            vocab_size=len(SYMBOLS),
            hidden_size=192,
            num_layers=4,
            num_heads=4,
            num_kv_heads=4,
            head_dim=32,
            feed_forward_size=768,
            latent_size=16,
            max_positions=96,
            num_levels=128,
            learned_positions=True,
        ),
        {"sudoku": 16, "chain": 4, "add": 8},
        Schedule(
            num_steps=20_000,
            batch_size=28,
            length=91,
            learning_rate=3e-3,
            measure_every=200,
            save_every=50,
        ),
    )
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give the command its flags."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="gets the checkpoint"
    )
    parser.add_argument(
        "--minutes", type=float, default=70.0, metavar="N", help="of training; default 70"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="updates at most; default of the scale"
    )
    parser.add_argument("--scale", choices=tuple(SCALES), default="cpu", help="sizes; default cpu")
    parser.add_argument(
        "--rows",
        choices=tuple(ROWS),
        default="both",
        help="train both kinds of rows, or one alone to compare with; default both",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default 1")
    parser.add_argument(
        "--precision",
        choices=tuple(_PRECISIONS),
        default="bfloat16",
        help="of matrix products while training; default bfloat16",
    )
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")


def run(arguments: argparse.Namespace) -> Path:
    """Train; the folder. Raises ValueError for flags that contradict each other."""
    scale = SCALES[arguments.scale]
    schedule = scale.schedule
    if arguments.steps is not None:
        schedule = replace(schedule, num_steps=arguments.steps)
    if arguments.minutes <= 0 or schedule.num_steps < 1:
        raise ValueError("--minutes and --steps must be above 0")
    folder = arguments.out / _WORK
    texts = _open(folder, _settings(arguments, schedule), resume=arguments.resume)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(arguments.seed)
    model = TaskModel(scale.shape, ROWS[arguments.rows], generator=generator).to(device)
    trainer = Trainer(
        model,
        schedule,
        folder,
        seed=arguments.seed,
        minutes=arguments.minutes,
        precision=_PRECISIONS[arguments.precision],
    )
    if arguments.resume:
        trainer.restore()
    held_out = TaskBatches(
        TaskTexts.make(_MEASURED["sudoku"], seed=HELD_OUT_SEED), _MEASURED, HELD_OUT_SEED
    ).batch(0)
    if not trainer.run(TaskBatches(texts, scale.counts, arguments.seed), held_out):
        raise ValueError(f"stopped after step {trainer.step}; go on with --resume")
    _finish(arguments, trainer, held_out.to(device), _settings(arguments, schedule))
    return Path(arguments.out)


_ABOUT = (
    "A small model that is autoregressive and a diffusion at once, on three tasks that are made "
    "from a seed: sudoku of 6 x 6, a chain of digits, and sums. It follows our reading of Evo "
    "(arXiv 2603.06617), of which only the abstract is public, and is compatible with nothing but "
    "this project. Embeddings are equally long, so that one network serves every path of noise "
    "levels, as in Discrete Stochastic Localization (arXiv 2602.16169, 2605.12836); the exact "
    "likelihood of a latent is added to its scores, as in Plaid (arXiv 2305.18619). The table of "
    "positions began with codes of row, column and box for the cells of a sudoku."
)
_LIMITS = (
    "It knows 24 symbols and three kinds of text, and answers anything else with nonsense. What "
    "each way of decoding reaches is in the project's docs/training.md."
)


def _finish(
    arguments: argparse.Namespace, trainer: Trainer, held_out: Tensor, settings: dict[str, Json]
) -> None:
    """Measure the averaged weights as they are stored, and write what can be served."""
    generator = torch.Generator(held_out.device).manual_seed(arguments.seed)
    with trainer.averaged(rounded_to=torch.float16) as model:
        figures = model.figures(held_out, generator)
        tensors = {name: value.clone() for name, value in model.tensors().items()}
        config = model.config(figures)
    training = settings | {
        "steps": trainer.step,
        "minutes": round(trainer.elapsed_s / 60, 1),
        "texts seen": trainer.step * trainer.schedule.batch_size,
        "parameters stored": sum(value.numel() for value in tensors.values()),
        "device": f"{held_out.device.type}, {torch.get_num_threads()} threads",
        "torch": str(torch.__version__),
    }
    command = (
        f"estuary train evo-tasks --out FOLDER --scale {arguments.scale} --rows {arguments.rows} "
        f"--seed {arguments.seed} --minutes {arguments.minutes:g} "
        f"--precision {arguments.precision}"
    )
    card = ModelCard(
        "Evo (our reading) on three tasks",
        _ABOUT,
        _LIMITS,
        command,
        training,
        figures,
        texts="All texts are made from the seed; held-out puzzles come from another one.",
        measured="on texts made from a seed that was never trained on",
        licence="There are no texts by others.",
    )
    export(
        arguments.out,
        tensors=tensors,
        config=config,
        tokenizer=symbol_tokenizer(),
        card=card,
        notices=None,
    )
    values = {"training": training, "figures": figures}
    place = arguments.out / "figures.json"
    place.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    shutil.copy(arguments.out / _WORK / LOG_FILE, arguments.out / LOG_FILE)


def _settings(arguments: argparse.Namespace, schedule: Schedule) -> dict[str, Json]:
    """What a resumed run must have in common with the one that was stopped."""
    return {
        "recipe": "evo-tasks",
        "scale": arguments.scale,
        "rows": arguments.rows,
        "steps": schedule.num_steps,
        "seed": arguments.seed,
        "precision": arguments.precision,
    }


def _open(folder: Path, settings: dict[str, Json], *, resume: bool) -> TaskTexts:
    """Begin a folder, or go on with one; the texts of its run.

    Raises ValueError when it is there and should not be, or is of another run.
    """
    place = folder / _SETTINGS
    if resume:
        if not place.is_file():
            raise ValueError(f"there is nothing to resume in {folder}")
        if json.loads(place.read_text(encoding="utf-8")) != settings:
            raise ValueError(f"the run in {folder} was begun with other flags")
        stored = load_file(folder / _PUZZLES)
        return TaskTexts(Puzzles(stored["puzzles"], stored["solutions"]))
    if folder.exists():
        raise ValueError(f"{folder} exists already; go on with --resume")
    texts = TaskTexts.make(NUM_PUZZLES, seed=int(str(settings["seed"])))
    folder.mkdir(parents=True)
    save_file(
        {"puzzles": texts.puzzles.puzzles, "solutions": texts.puzzles.solutions},
        folder / _PUZZLES,
    )
    place.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return texts


EVO_TASKS = Recipe(
    "evo-tasks",
    "Train a small Evo (our reading) on three generated tasks.",
    add_flags,
    run,
)
