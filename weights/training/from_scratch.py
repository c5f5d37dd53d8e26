"""Training from scratch as a command: text to a folder that can be served, in one go or several.

OUT/training holds what a run needs to go on (state, log, tokens, vocabulary); OUT itself gets the
checkpoint when the run is done.
"""

import argparse
import json
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import tokenizers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weights.config_fields import Json
from weights.training.data.text import (
    Windows,
    encode,
    read_corpus,
    text_files,
    train_vocabulary,
)
from weights.training.export import NOTICE, ModelCard, export
from weights.training.loop import LOG_FILE, Schedule, Trainable, Trainer
from weights.training.recipe import Recipe

log = logging.getLogger(__name__)

_WORK = "training"
_SETTINGS = "settings.json"
_TOKENS = "tokens.safetensors"
_VOCABULARY = "tokenizer.json"
# Held-out windows measured while training, and at its end.
_MEASURED_WINDOWS = 16
_FINAL_WINDOWS = 96
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Scale(Protocol):
    """Sizes and course of a run of some recipe."""

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary that is trained on the text."""
        ...

    @property
    def schedule(self) -> Schedule:
        """The course."""
        ...

    def build(self, vocab_size: int, generator: torch.Generator) -> Trainable:
        """A fresh model."""
        ...


@dataclass(frozen=True, slots=True)
class FromScratch:
    """A recipe that needs nothing but text; title, about and limits are for its model card."""

    name: str
    summary: str
    title: str
    about: str
    limits: str
    scales: dict[str, Scale]

    def recipe(self) -> Recipe:
        """It as a command."""
        return Recipe(self.name, self.summary, self.add_flags, self.run)

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Give the command its flags."""
        parser.add_argument(
            "--text",
            type=Path,
            nargs="+",
            required=True,
            metavar="PATH",
            help="plain-text files, or folders of .txt files; a form feed ends a document",
        )
        parser.add_argument(
            "--out", type=Path, required=True, metavar="FOLDER", help="gets the checkpoint"
        )
        parser.add_argument(
            "--minutes", type=float, default=30.0, metavar="N", help="of training; default 30"
        )
        parser.add_argument(
            "--steps", type=int, metavar="N", help="updates at most; default of the scale"
        )
        parser.add_argument(
            "--scale", choices=tuple(self.scales), default="cpu", help="sizes; default cpu"
        )
        parser.add_argument("--seed", type=int, default=1, metavar="N", help="default 1")
        parser.add_argument(
            "--precision",
            choices=tuple(_PRECISIONS),
            default="float32",
            help="of matrix products while training; default float32",
        )
        parser.add_argument(
            "--resume", action="store_true", help="go on with a run that was stopped"
        )

    def run(self, arguments: argparse.Namespace) -> Path:
        """Train; the folder. Raises ValueError for flags that contradict each other."""
        scale = self.scales[arguments.scale]
        schedule = scale.schedule
        if arguments.steps is not None:
            schedule = replace(schedule, num_steps=arguments.steps)
        if arguments.minutes <= 0 or schedule.num_steps < 1:
            raise ValueError("--minutes and --steps must be above 0")
        work = _Work(arguments.out / _WORK, self._settings(arguments, schedule))
        work.open(arguments.text, vocab_size=scale.vocab_size, resume=arguments.resume)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = scale.build(
            work.tokenizer.get_vocab_size(), torch.Generator().manual_seed(arguments.seed)
        )
        trainer = Trainer(
            model.to(device),
            schedule,
            work.folder,
            seed=arguments.seed,
            minutes=arguments.minutes,
            precision=_PRECISIONS[arguments.precision],
        )
        if arguments.resume:
            trainer.restore()
        trained = Windows(work.trained, schedule.length, schedule.batch_size, arguments.seed)
        held_out = Windows(work.held_out, schedule.length, 1, arguments.seed)
        if not trainer.run(trained, held_out.all_in_order(at_most=_MEASURED_WINDOWS)):
            raise ValueError(f"stopped after step {trainer.step}; go on with --resume")
        self._finish(arguments, trainer, work, held_out)
        return Path(arguments.out)

    def _settings(self, arguments: argparse.Namespace, schedule: Schedule) -> dict[str, Json]:
        """What a resumed run must have in common with the one that was stopped."""
        files = text_files(arguments.text)
        return {
            "recipe": self.name,
            "scale": arguments.scale,
            "steps": schedule.num_steps,
            "seed": arguments.seed,
            "precision": arguments.precision,
            "text": [f"{path.name} ({path.stat().st_size} bytes)" for path in files],
        }

    def _finish(
        self, arguments: argparse.Namespace, trainer: Trainer, work: "_Work", held_out: Windows
    ) -> None:
        device = next(trainer.model.parameters()).device
        generator = torch.Generator(device).manual_seed(arguments.seed)
        windows = held_out.all_in_order(at_most=_FINAL_WINDOWS).to(device)
        with trainer.averaged(rounded_to=torch.float16) as model:
            figures = model.figures(windows, generator)
            tensors = {name: value.clone() for name, value in model.tensors().items()}
            config = model.config(figures)
        figures["held_out_tokens_measured"] = windows.numel()
        figures["bytes_per_token"] = work.bytes_per_token
        training = dict(work.settings) | {
            "steps": trainer.step,
            "minutes": round(trainer.elapsed_s / 60, 1),
            "tokens seen": trainer.step * trainer.schedule.batch_size * trainer.schedule.length,
            "tokens in the text": work.trained.shape[0],
            "parameters stored": sum(value.numel() for value in tensors.values()),
            "device": f"{device.type}, {torch.get_num_threads()} threads",
            "torch": str(torch.__version__),
        }
        command = (
            f"estuary train {self.name} --text TEXT --out FOLDER --scale {arguments.scale} "
            f"--seed {arguments.seed} --steps {work.settings['steps']} "
            f"--minutes {arguments.minutes:g} --precision {arguments.precision}"
        )
        export(
            arguments.out,
            tensors=tensors,
            config=config,
            tokenizer=work.tokenizer,
            card=ModelCard(self.title, self.about, self.limits, command, training, figures),
            notices=_notices(arguments.text),
        )
        _write_json(arguments.out / "figures.json", {"training": training, "figures": figures})
        shutil.copy(work.folder / LOG_FILE, arguments.out / LOG_FILE)


class _Work:
    """The folder of a run: its settings, vocabulary and tokens, made once."""

    def __init__(self, folder: Path, settings: dict[str, Json]) -> None:
        self.folder = folder
        self.settings = settings
        self.tokenizer: tokenizers.Tokenizer
        self.trained: Tensor
        self.held_out: Tensor
        self.bytes_per_token: float

    def open(self, paths: list[Path], *, vocab_size: int, resume: bool) -> None:
        """Make the folder, or with `resume` find everything in it.

        Raises ValueError when it is there and should not be, or is of another run.
        """
        place = self.folder / _SETTINGS
        if resume:
            if not place.is_file():
                raise ValueError(f"there is nothing to resume in {self.folder}")
            if json.loads(place.read_text(encoding="utf-8")) != self.settings:
                raise ValueError(f"the run in {self.folder} was begun with other flags or texts")
            self._read()
            return
        if self.folder.exists():
            raise ValueError(f"{self.folder} exists already; go on with --resume")
        self._make(paths, vocab_size)
        _write_json(place, self.settings)

    def _make(self, paths: list[Path], vocab_size: int) -> None:
        corpus = read_corpus(paths)
        self.tokenizer = train_vocabulary(corpus.trained, vocab_size=vocab_size)
        self.trained = encode(corpus.trained, self.tokenizer)
        self.held_out = encode(corpus.held_out, self.tokenizer)
        held_out_bytes = sum(len(document.encode()) for document in corpus.held_out)
        self.bytes_per_token = held_out_bytes / self.held_out.shape[0]
        self.folder.mkdir(parents=True)
        self.tokenizer.save(str(self.folder / _VOCABULARY))
        tensors = {
            "trained": self.trained,
            "held_out": self.held_out,
            "bytes_per_token": torch.tensor(self.bytes_per_token, dtype=torch.float64),
        }
        save_file(tensors, self.folder / _TOKENS)
        log.info(
            "%d tokens to train on, %d held out, %.2f bytes each",
            self.trained.shape[0],
            self.held_out.shape[0],
            self.bytes_per_token,
        )

    def _read(self) -> None:
        self.tokenizer = tokenizers.Tokenizer.from_file(str(self.folder / _VOCABULARY))
        tensors = load_file(self.folder / _TOKENS)
        self.trained, self.held_out = tensors["trained"], tensors["held_out"]
        self.bytes_per_token = float(tensors["bytes_per_token"])


def _notices(paths: list[Path]) -> list[Path]:
    """The NOTICE files that stand beside the texts."""
    folders = dict.fromkeys(path if path.is_dir() else path.parent for path in paths)
    return [folder / NOTICE for folder in folders if (folder / NOTICE).is_file()]


def _write_json(path: Path, values: dict[str, Json]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
