"""The example checkpoints of the repository: they load, and say what their cards say."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from sampler.border.engine_config import EngineConfig
from sampler.border.request import DecodingMode, DecodingParams, SamplingParams
from sampler.engine_process import load_engine
from sampler.likelihood import text_likelihood
from sampler.state.decoding import resolve_decoding
from tests.bench.canvas_answers import answer_all
from weights import load_model
from weights.training.data.prompts import Prompt
from weights.training.data.tasks import SUDOKU, TaskTexts, is_right

EXAMPLES = Path(__file__).parents[3] / "weights" / "examples"
NAMES = ("evo", "eso_lm")
MOST_BYTES = 3_400_000
# Not from any training text.
PAGE = (
    "The server keeps a table of all open files. When a file is closed, its entry is removed from "
    "the table and the memory that it used can be given to another file. If there is no more room "
    "in the table, an error is returned to the client and the name of the file is written to the "
    "log. This behavior can be changed in the configuration of the server."
)


def figures(name):
    return json.loads((EXAMPLES / name / "figures.json").read_text())["figures"]


def load(name):
    return load_model(EXAMPLES / name, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_complete_and_small(name):
    folder = EXAMPLES / name
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "generation_config.json",
        "README.md",
        "NOTICE",
        "figures.json",
        "training_log.jsonl",
    }
    assert (folder / "model.safetensors").stat().st_size <= MOST_BYTES
    assert "CC BY-SA 4.0" in (folder / "NOTICE").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_held_out_losses_fell_in_training(name):
    lines = map(json.loads, (EXAMPLES / name / "training_log.jsonl").read_text().splitlines())
    held_out = [line for line in lines if line["kind"] == "held_out"]
    parts = set(held_out[0]) - {"kind", "step", "elapsed_s"}
    assert all(held_out[-1][part] < held_out[0][part] for part in parts)


def test_the_exact_perplexity_of_the_eso_lm_rises_with_the_random_share():
    by_share = figures("eso_lm")["exact_perplexity"]
    assert by_share["0.0"] < by_share["0.25"] < by_share["1.0"]


def test_the_eso_lm_is_served_in_the_order_that_it_was_trained_for():
    model = load("eso_lm")
    assert resolve_decoding(SamplingParams(max_tokens=8), model.family.rule).alpha_0 == 0.25
    tokens = model.tokenizer.encode(PAGE, add_special_tokens=False)
    served, trained = (
        text_likelihood(model.network, model.family.rule, tokens, num_orders=2, **share)
        for share in ({}, {"alpha_0": 0.25})
    )
    assert served.by_order.tolist() == trained.by_order.tolist()


def test_the_scorer_finds_the_same_rise_on_a_page_of_its_own():
    model = load("eso_lm")
    tokens = model.tokenizer.encode(PAGE, add_special_tokens=False)
    ordered, mixed, random = (
        -text_likelihood(
            model.network, model.family.rule, tokens, num_orders=8, alpha_0=share
        ).by_order.mean()
        / len(tokens)
        for share in (0.0, 0.25, 1.0)
    )
    assert ordered < mixed < random < 6.5


def test_the_evo_knows_more_of_a_row_the_less_of_it_is_noise():
    calibration = load("evo").config.latent.calibration
    assert [list(pair) for pair in calibration] == figures("evo")["calibration"]
    assert all(before[1] <= after[1] for before, after in itertools.pairwise(calibration))
    assert calibration[0][1] < 0.05
    assert calibration[-1][1] > 0.4


def test_the_evo_reads_a_page_better_than_by_letter_frequency():
    model = load("evo")
    tokens = model.tokenizer.encode(PAGE, add_special_tokens=False)
    scored = text_likelihood(model.network, model.family.rule, tokens)
    assert -scored.logprob / scored.num_scored < 5.0


def test_the_example_of_tasks_solves_most_held_out_puzzles_in_few_forwards():
    config = EngineConfig(
        model=str(EXAMPLES / "evo_tasks"), device="cpu", dtype="float32", max_sequences=12
    )
    engine, _ = load_engine(config)
    texts = TaskTexts.make(12, seed=5).draw(SUDOKU, 12, torch.Generator().manual_seed(1))
    prompts = [
        Prompt("task", tuple(ids), True) for ids in texts[:, : SUDOKU.prompt_length].tolist()
    ]
    decoding = DecodingParams(mode=DecodingMode.DIFFUSION)
    answers, _ = answer_all(engine, prompts, decoding, max_tokens=SUDOKU.answer_length)
    tokens = torch.zeros(12, SUDOKU.answer_length, dtype=torch.int64)
    for row, answer in enumerate(answers):
        tokens[row, : len(answer.tokens)] = torch.tensor(answer.tokens)
    assert is_right(SUDOKU, texts, tokens).sum() >= 10
    assert max(answer.stats.steps for answer in answers) <= 12


def test_the_example_of_tasks_is_small_and_says_how_it_was_made():
    folder = EXAMPLES / "evo_tasks"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    assert "minutes | 33.0" in (folder / "README.md").read_text()
