"""Evo on generated tasks: texts, objective, and an engine that decodes as the training code."""

import itertools
import json

import pytest
import torch

from sampler.border.engine_config import EngineConfig
from sampler.border.request import DecodingMode, DecodingParams, EvoParams
from sampler.engine_process import load_engine
from tests.bench.canvas_answers import AR, answer_all
from weights.training.data.prompts import Prompt
from weights.training.data.sudoku import count_solutions
from weights.training.data.tasks import (
    ADD,
    CHAIN,
    SUDOKU,
    SYMBOLS,
    TASKS,
    TaskTexts,
    is_right,
    symbol_tokenizer,
    text_of,
)
from weights.training.evo_checkpoint import served_config, served_tensors
from weights.training.evo_levels import MeasuredEntropy, draw_levels
from weights.training.evo_network import EvoNetwork, EvoShape
from weights.training.evo_sampler import Path, decode_ar, decode_canvas
from weights.training.evo_tasks import Rows, TaskBatches, TaskModel, split_tasks
from weights.training.export import ModelCard, export

SHAPE = EvoShape(
    vocab_size=len(SYMBOLS),
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=16,
    feed_forward_size=48,
    latent_size=16,
    max_positions=96,
    num_levels=32,
    learned_positions=True,
)
# Decoded by a network that was not trained, whose entropy is nearly that of 24 equal symbols.
CALIBRATION = [(0.0, 0.0), (0.5, 0.3), (0.8, 0.7), (1.0, 0.9)]


@pytest.fixture(scope="module")
def texts():
    return TaskTexts.make(12, seed=7)


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def test_puzzles_have_one_solution_and_twelve_to_sixteen_givens(texts):
    drawn = texts.draw(SUDOKU, 40, seeded())
    cells = drawn[:, 6:42]
    digits = torch.where(cells == SYMBOLS.index("."), 0, cells - SYMBOLS.index("0"))
    givens = (digits > 0).sum(dim=1)
    assert set(givens.tolist()) <= set(range(12, 17))
    solutions = drawn[:, 43:79] - SYMBOLS.index("0")
    assert torch.equal(torch.where(digits > 0, solutions, 0), digits)
    assert all(count_solutions(puzzle, at_most=3) == 1 for puzzle in digits.tolist())
    assert len({tuple(puzzle) for puzzle in digits.tolist()}) == 40


def test_a_puzzle_of_nothing_has_many_solutions_and_a_contradiction_none():
    assert count_solutions([0] * 36, at_most=5) == 5
    assert count_solutions([1, 2, 3, 4, 5, 0] + [0] * 5 + [6] + [0] * 24, at_most=1) == 0


def test_texts_are_what_they_say(texts):
    chain = text_of(texts.draw(CHAIN, 1, seeded())[0].tolist()).removeprefix("chain=")
    assert len(chain) == 32
    assert all((3 * int(a) + 1) % 10 == int(b) for a, b in itertools.pairwise(chain))
    for ids in texts.draw(ADD, 20, seeded()).tolist():
        terms, total = text_of(ids).removeprefix("add").split("=")
        assert sum(map(int, terms.split("+"))) == int(total)
        assert len(total) == 11


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_an_answer_is_right_only_when_all_of_it_is(task, texts):
    drawn = texts.draw(task, 6, seeded())
    answers = drawn[:, task.prompt_length :].clone()
    assert is_right(task, drawn, answers).all()
    answers[0, 0] = SYMBOLS.index("+")
    answers[1, -1] = SYMBOLS.index("1")
    answers[2, -2] = SYMBOLS.index("1") + (answers[2, -2] == SYMBOLS.index("1")).long()
    assert is_right(task, drawn, answers).tolist() == [False] * 3 + [True] * 3


def test_a_chain_is_right_from_any_first_digit(texts):
    drawn = texts.draw(CHAIN, 40, seeded())
    assert is_right(CHAIN, drawn, drawn.flip(0)[:, CHAIN.prompt_length :]).all()


def test_the_tokenizer_has_a_token_for_every_symbol():
    tokenizer = symbol_tokenizer()
    assert tokenizer.get_vocab_size() == 24
    assert tokenizer.encode("add01+2=", add_special_tokens=False).ids == [
        SYMBOLS.index(symbol) for symbol in "add01+2="
    ]
    assert tokenizer.decode([SYMBOLS.index(symbol) for symbol in "chain=43"]) == "chain=43"


def test_shares_of_information_are_evenly_drawn_levels():
    entropy = MeasuredEntropy(16)
    with torch.no_grad():
        entropy.table.copy_(torch.tensor([0.0] * 9 + [0.125 * i for i in range(1, 9)]))
    shares = torch.linspace(0.02, 1, 200)
    levels = entropy.levels_of(shares)
    assert int(levels.min()) >= 6
    assert (levels[1:] >= levels[:-1]).all()
    assert entropy.levels_of(torch.tensor([0.0, 1.0])).tolist() == [0, 16]


def test_the_measured_entropy_follows_what_rows_say():
    entropy = MeasuredEntropy(4)
    for _ in range(400):
        entropy.follow(torch.tensor([0.5] * 8 + [2.0] * 8), torch.tensor([2] * 8 + [4] * 8))
    assert entropy.table.tolist() == pytest.approx([0.0, 0.25, 0.5, 0.75, 2.0], abs=0.01)


def test_levels_follow_the_mixture_of_patterns():
    entropy = MeasuredEntropy(32)
    place = ((torch.arange(24) + 0.5) / 24).expand(6000, 24)
    levels = draw_levels(place, entropy, seeded())
    is_masked = ((levels == 0) | (levels == 32)).all(dim=1).float().mean()
    # Equal levels at t = 1 are masks too, all of them unknown.
    assert 0.38 < is_masked < 0.52
    is_open = levels > 0
    lowest = torch.where(is_open, levels, 99).min(dim=1).values
    moving = (lowest < 32) & (lowest > 0)
    same = (torch.where(is_open, levels, lowest[:, None]) == lowest[:, None]).all(dim=1)
    assert 0.1 < (same & moving).float().mean() < 0.3
    assert int(is_open.sum(dim=1).min()) == 0 or int(is_open.sum()) > 0


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (Rows(), {"own", "next"}),
        (Rows(says_own=False), {"next"}),
        (Rows(says_next=False), {"own"}),
    ],
)
def test_every_task_has_its_part_of_the_loss(texts, rows, names):
    model = TaskModel(SHAPE, rows, generator=seeded())
    batches = TaskBatches(texts, {"sudoku": 2, "chain": 2, "add": 2}, 3)
    losses = model.losses(batches.batch(0), batches.generator(0, device=torch.device("cpu")))
    assert set(losses) == {f"{task.name}_{name}" for task in TASKS for name in names}
    assert all(bool(loss.isfinite()) for loss in losses.values())


def test_batches_hold_every_task_and_depend_on_their_step_alone(texts):
    batches = TaskBatches(texts, {"sudoku": 3, "chain": 2, "add": 1}, 3)
    assert torch.equal(batches.batch(4), batches.batch(4))
    assert not torch.equal(batches.batch(4), batches.batch(5))
    sizes = {task.name: rows.shape[0] for task, rows in split_tasks(batches.batch(0))}
    assert sizes == {"sudoku": 3, "chain": 2, "add": 1}


@pytest.fixture(scope="module")
def network():
    made = EvoNetwork(SHAPE, generator=seeded(4))
    with torch.no_grad():
        for value in made.parameters():
            # Sharper than at its beginning, so that some rows are certain before others.
            value.copy_((2.5 * value if value.ndim == 2 else value).half())
        made.latent.mark.normal_(0, 0.3, generator=seeded(5))
        made.latent.mark.copy_(made.latent.mark.half())
    return made


@pytest.fixture(scope="module")
def engine(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evo") / "model"
    calibration = [list(pair) for pair in CALIBRATION]
    export(
        folder,
        tensors=served_tensors(network),
        config=served_config(SHAPE, width=48, calibration=calibration, decoding={}),
        tokenizer=symbol_tokenizer(),
        card=ModelCard("title", "about", "limits", "command", {}, {}),
        notices=None,
    )
    assert json.loads((folder / "config.json").read_text())["latent"]["output_prior"]
    config = EngineConfig(model=str(folder), device="cpu", dtype="float32", max_sequences=8)
    return load_engine(config)[0]


def served(engine, drawn, task, decoding):
    prompts = [Prompt("task", tuple(ids), True) for ids in drawn[:, : task.prompt_length].tolist()]
    answers, _ = answer_all(
        engine, prompts, decoding, max_tokens=task.answer_length, ignore_eos=True
    )
    return [list(answer.tokens) for answer in answers], [a.stats.steps for a in answers]


def canvas(**knobs):
    return DecodingParams(mode=DecodingMode.DIFFUSION, width=48, evo=EvoParams(**knobs))


PATHS = {
    "one jump": (Path(1, 1), {"delta_min": 1.0, "delta_max": 1.0}),
    "eight steps": (Path(1 / 8, 1 / 8), {"delta_min": 1 / 8, "delta_max": 1 / 8}),
    "masks": (Path(0, 0, jump=0.6, patience=1), {"delta_min": 0.0, "delta_max": 0.0}),
    "adaptive": (
        Path(1 / 16, 1 / 2, finalize=0.5, jump=0.3, t_plan=0.8, patience=4),
        {"delta_min": 1 / 16, "delta_max": 1 / 2},
    ),
}


@pytest.mark.parametrize("name", PATHS)
def test_the_engine_decodes_as_the_training_code_does(engine, network, texts, name):
    path, deltas = PATHS[name]
    drawn = texts.draw(ADD, 5, seeded(8))
    knobs = {
        "finalize_uncertainty": path.finalize,
        "jump_uncertainty": path.jump,
        "t_plan": path.t_plan,
        "max_refine_steps": path.patience,
        "order": "any",
        **deltas,
    }
    tokens, forwards = served(engine, drawn, ADD, canvas(**knobs))
    wanted = decode_canvas(
        network,
        drawn[:, : ADD.prompt_length],
        ADD.answer_length,
        path,
        CALIBRATION,
        generator=seeded(),
    )
    assert tokens == wanted.answers.tolist()
    assert forwards == wanted.forwards.tolist()


def test_the_engine_decodes_ar_as_the_training_code_does(engine, network, texts):
    drawn = texts.draw(CHAIN, 3, seeded(8))
    tokens, _ = served(engine, drawn, CHAIN, AR)
    wanted = decode_ar(network, drawn[:, : CHAIN.prompt_length], CHAIN.answer_length)
    assert tokens == wanted.answers.tolist()
