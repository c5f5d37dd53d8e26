"""`estuary train canvas-adapter`: the base's answers, training, calibration, the folder."""

import argparse
import json
import logging
import random
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from weights.config_fields import Json
from weights.families import find_family
from weights.files.canvas_adapter import fingerprint
from weights.files.checkpoint import open_checkpoint
from weights.load import LoadedModel, Quantize, load_model
from weights.network.transformer import Transformer
from weights.training.answers import (
    AnsweredPrompt,
    AnswerSettings,
    AnswerWriter,
    read_answers,
    texts_as_answers,
    write_answers,
)
from weights.training.canvas_adapter import AdapterRecipe, AdapterTraining
from weights.training.canvas_network import AdapterShape, FrozenBase
from weights.training.data.prompts import Prompt, is_held_out, read_prompts
from weights.training.recipe import Recipe

log = logging.getLogger(__name__)

_CONTEXT = 512
_SHORTEST_PARAGRAPH = 600
_OPENING_TOKENS = (16, 64)
# How the latents of an adapter move where a request does not say. Rows whose t has fallen have
# seen what they guessed themselves and trust it, which costs more quality than it saves forwards.
_DECODING: dict[str, Json] = {
    "delta_min": 0.0,
    "delta_max": 0.0,
    "jump_uncertainty": 0.1,
    "uncertainty": "entropy",
    "order": "left_to_right",
}
_SCALES = {
    "cpu": AdapterRecipe(),
    "gpu": AdapterRecipe(
        shape=AdapterShape(rank=64), steps=20_000, canvases=256, save_every=2000, warm_up=500
    ),
}


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", type=Path, required=True, metavar="PATH", help="the base model")
    parser.add_argument(
        "--prompts",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="JSON lines with a prompt or a question each",
    )
    parser.add_argument(
        "--text", type=Path, nargs="*", default=[], metavar="FILE", help="prose, a paragraph a line"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="gets the adapter"
    )
    parser.add_argument(
        "--answer-minutes",
        type=float,
        default=20.0,
        metavar="N",
        help="for the base's own answers; default 20",
    )
    parser.add_argument("--minutes", type=float, metavar="N", help="of training at most")
    parser.add_argument("--steps", type=int, metavar="N", help="default of the scale")
    parser.add_argument("--paragraphs", type=int, default=90, metavar="N", help="of each text")
    parser.add_argument("--scale", choices=tuple(_SCALES), default="cpu", help="default cpu")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default 1")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default all")


def _run(arguments: argparse.Namespace) -> Path:
    """Write answers, train, calibrate, export; a stopped run goes on where it was.

    Raises ValueError or CheckpointError for input that cannot be used.
    """
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    recipe = replace(_SCALES[arguments.scale], seed=arguments.seed)
    if arguments.steps is not None:
        recipe = replace(recipe, steps=arguments.steps)
    work = arguments.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    model = _load(arguments.base, None)
    answers = _answers(arguments, model, work / "answers.jsonl")
    base = FrozenBase(_network_of(model), torch.bfloat16)
    training = AdapterTraining(base, answers, recipe, work)
    training.resume()
    training.run(minutes=arguments.minutes)
    if training.step < recipe.steps:
        raise ValueError(f"stopped after step {training.step}; run the same command to go on")
    export_adapter(training, arguments.base, arguments.out)
    return Path(arguments.out)


def _network_of(model: LoadedModel) -> Transformer:
    if not isinstance(model.network, Transformer) or model.family.rule.drafts:
        raise ValueError("a canvas adapter needs a Llama-style base that decodes left to right")
    return model.network


def _load(path: Path, quantize: Quantize | None) -> LoadedModel:
    return load_model(
        path,
        dtype=torch.float32,
        device=torch.device("cpu"),
        quantize=quantize,
        context_length=_CONTEXT,
    )


def _answers(arguments: argparse.Namespace, model: LoadedModel, path: Path) -> list[AnsweredPrompt]:
    """The base's answers to all kinds of prompts in turn, and prose as it stands."""
    tokenizer, template = model.tokenizer, model.chat_template
    if tokenizer is None or template is None:
        raise ValueError("the base has no tokenizer or no chat template")
    if not path.is_file():
        prompts = read_prompts(
            arguments.prompts, tokenizer=tokenizer, template=template, seed=arguments.seed
        )
        quick = _load(arguments.base, Quantize.INT8)
        writer = AnswerWriter(
            quick.network,
            eos_ids=frozenset(quick.generation.eos_token_ids),
            settings=AnswerSettings(seed=arguments.seed),
        )
        write_answers(path, writer, _in_turn(prompts), minutes=arguments.answer_minutes)
    generator = random.Random(arguments.seed)
    paragraphs = []
    for file in sorted(arguments.text):
        lines = file.read_text(encoding="utf-8").split("\n")
        long = [line for line in lines if len(line) >= _SHORTEST_PARAGRAPH]
        paragraphs += generator.sample(long, min(arguments.paragraphs, len(long)))
    openings, texts = [], []
    for line in paragraphs:
        ids = tuple(tokenizer.encode(line, add_special_tokens=False))
        cut = generator.randint(*_OPENING_TOKENS)
        openings.append(Prompt("prose", ids[:cut], is_held_out(line)))
        texts.append(ids)
    longest = AnswerSettings().max_tokens
    return read_answers(path) + texts_as_answers(openings, texts, max_tokens=longest)


def _in_turn(prompts: list[Prompt]) -> list[Prompt]:
    """One of each kind after the other, so that a short run has all of them."""
    by_kind: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_kind.setdefault(prompt.kind, []).append(prompt)
    longest = max((len(own) for own in by_kind.values()), default=0)
    return [own[i] for i in range(longest) for own in by_kind.values() if i < len(own)]


def export_adapter(training: AdapterTraining, base_path: Path, out: Path) -> None:
    """Write the averaged weights as a folder that `weights.files.canvas_adapter` opens."""
    checkpoint = open_checkpoint(base_path)
    shape, base = training.recipe.shape, training.base
    calibration = training.calibrate()
    latent: dict[str, Json] = {
        "size": base.hidden_size,
        "num_levels": shape.num_levels,
        "speaks_of": "next",
        "width": training.recipe.width,
        "max_offset": shape.max_width,
        "rank": shape.rank,
        "matrices": list(shape.matrices),
        "embedding_scale": base.embedding_scale,
        "calibration": [[t, entropy] for t, entropy in calibration],
        "decoding": _DECODING,
    }
    config: dict[str, Json] = {
        "base": {
            "name": checkpoint.name,
            "family": find_family(checkpoint.config).name,
            "fingerprint": fingerprint(checkpoint.tensors),
        },
        "latent": latent,
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(training.tensors(), out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    log_file = out / "training_log.jsonl"
    log_file.write_bytes((training.folder / "log.jsonl").read_bytes())


CANVAS_ADAPTER = Recipe(
    "canvas-adapter",
    "Train a canvas adapter for a frozen base by distillation on its own answers.",
    _add_flags,
    _run,
)
