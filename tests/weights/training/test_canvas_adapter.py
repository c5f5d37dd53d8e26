"""The recipe of the canvas adapter over the golden Llama: gradients, resuming, what it exports."""

import json
import random
from dataclasses import replace

import pytest
import torch

from tests.weights.adapters import BASE, load
from weights.errors import CheckpointError
from weights.training.adapter_recipe import export_adapter
from weights.training.answers import (
    AnsweredPrompt,
    AnswerSettings,
    AnswerWriter,
    read_answers,
    write_answers,
)
from weights.training.canvas_adapter import AdapterRecipe, AdapterTraining
from weights.training.canvas_network import (
    AdapterShape,
    FrozenBase,
    base_targets,
    distillation_loss,
    sample_vocabulary,
)
from weights.training.data.prompts import Prompt, read_prompts

RECIPE = AdapterRecipe(
    shape=AdapterShape(rank=4, num_levels=8, max_width=6),
    steps=12,
    canvases=6,
    width=4,
    learning_rate=2e-2,
    warm_up=2,
    ema_decay=0.5,
    save_every=5,
)


@pytest.fixture(scope="module")
def model():
    return load()


def some_answers(model, count=12):
    generator = random.Random(1)
    size = model.config.vocab_size
    return [
        AnsweredPrompt(
            Prompt("chat" if i % 2 else "code", (i + 1, 5, 7), is_held_out=i % 3 == 0),
            tuple(generator.randrange(size) for _ in range(20)),
        )
        for i in range(count)
    ]


def training(model, folder, recipe=RECIPE):
    return AdapterTraining(
        FrozenBase(model.network, torch.float32), some_answers(model), recipe, folder
    )


def losses(folder):
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_the_loss_over_the_whole_vocabulary_is_cross_entropy_with_its_gradient(model):
    generator = torch.Generator().manual_seed(1)
    head = model.network.head_weight
    hidden = torch.randn((5, head.shape[1]), generator=generator, requires_grad=True)
    wanted = torch.rand((5, head.shape[0]), generator=generator).softmax(-1)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0])
    everything = sample_vocabulary(
        torch.arange(head.shape[0]), size=head.shape[0], num_random=3, generator=generator
    )
    assert torch.equal(everything.ids, torch.arange(head.shape[0]))
    assert not everything.log_odds.any()
    distillation_loss(hidden, head, everything, wanted=wanted, weights=weights).backward()
    found, hidden.grad = hidden.grad.clone(), None
    log_p = torch.nn.functional.linear(hidden, head).log_softmax(-1)
    (-(wanted * log_p).sum(-1) * weights).sum().backward()
    torch.testing.assert_close(found, hidden.grad, atol=1e-5, rtol=1e-4)


def test_a_sampled_vocabulary_stands_for_the_whole():
    """On average over draws, the sampled normaliser is that of the whole vocabulary."""
    generator = torch.Generator().manual_seed(1)
    size, likely = 400, torch.tensor([[3, 7], [11, 3]])
    logits = torch.randn(size, generator=generator)
    sums = []
    for _ in range(400):
        drawn = sample_vocabulary(likely, size=size, num_random=60, generator=generator)
        assert set(likely.flatten().tolist()) <= set(drawn.ids.tolist())
        sums.append((logits[drawn.ids] + drawn.log_odds).exp().sum())
    assert float(torch.stack(sums).mean()) == pytest.approx(float(logits.exp().sum()), rel=0.03)


def test_targets_are_the_best_tokens_of_the_base(model):
    base = FrozenBase(model.network, torch.float32)
    settled = base.settle(torch.tensor([3, 1, 4, 1, 5]))
    targets = base_targets(settled.hidden, base.head, num_best=6)
    wanted = torch.nn.functional.linear(settled.hidden, base.head).softmax(-1).topk(6)
    assert torch.equal(targets.ids, wanted.indices)
    torch.testing.assert_close(targets.shares, wanted.values)


def test_training_learns_and_a_resumed_run_equals_an_uninterrupted_one(model, tmp_path):
    whole = training(model, tmp_path / "whole", replace(RECIPE, steps=60))
    first = whole.evaluate()
    before = whole._train_step()["loss"]
    whole = training(model, tmp_path / "whole", replace(RECIPE, steps=60))
    whole.run()
    assert losses(tmp_path / "whole")[-1] < before
    assert set(first) >= {"run", "agreement_0", "run_chat", "run_code"}
    part = training(model, tmp_path / "part")
    part.run(minutes=0)
    part.recipe = replace(RECIPE, steps=7)
    part.run()
    again = training(model, tmp_path / "part")
    again.resume()
    assert again.step == 7
    again.recipe = RECIPE
    straight = training(model, tmp_path / "straight")
    straight.recipe = replace(RECIPE, steps=7)
    straight.run()
    straight.recipe = RECIPE
    again.run()
    straight.run()
    for name, value in straight.average.items():
        assert torch.equal(value, again.average[name]), name


def test_what_is_exported_is_served(model, tmp_path):
    run = training(model, tmp_path / "work")
    run.run()
    export_adapter(run, BASE, tmp_path / "adapter")
    served = load(tmp_path / "adapter")
    assert served.family.rule.modes == ("ar", "diffusion", "speculative")
    latent = served.config.latent
    assert (latent.rank, latent.num_levels, latent.width) == (4, 8, 4)
    entropies = [entropy for _, entropy in latent.calibration]
    assert entropies == sorted(entropies)
    assert (latent.defaults.delta_max, latent.defaults.order) == (0.0, "left_to_right")
    torch.testing.assert_close(
        served.network.latent.time, run.tensors()["latent.time.weight"].float()
    )


def test_training_refuses_answers_without_a_held_out_part(model, tmp_path):
    answers = [a for a in some_answers(model) if not a.prompt.is_held_out]
    base = FrozenBase(model.network, torch.float32)
    with pytest.raises(ValueError, match="held out"):
        AdapterTraining(base, answers, RECIPE, tmp_path)


def test_answers_are_those_of_greedy_decoding_and_go_on_where_they_stopped(model, tmp_path):
    prompts = [Prompt("chat", (3, i + 1, 4), is_held_out=False) for i in range(5)]
    settings = AnswerSettings(max_tokens=6, lanes=2, temperature=0.0)
    eos = frozenset({9_999})
    path = tmp_path / "answers.jsonl"
    write_answers(
        path, AnswerWriter(model.network, eos_ids=eos, settings=settings), prompts[:2], minutes=1
    )
    writer = AnswerWriter(model.network, eos_ids=eos, settings=settings)
    write_answers(path, writer, prompts, minutes=1)
    answers = {a.prompt.token_ids: a.answer_ids for a in read_answers(path)}
    assert set(answers) == {p.token_ids for p in prompts}
    base = FrozenBase(model.network, torch.float32)
    for prompt, answer in answers.items():
        ids = list(prompt)
        for token in answer:
            hidden = base.settle(torch.tensor(ids)).hidden
            assert int(torch.nn.functional.linear(hidden[-1], base.head).argmax()) == token
            ids.append(token)
        assert len(answer) == 6


def test_prompts_come_of_all_kinds_and_hold_some_out(tmp_path):
    class Plain:
        def encode(self, text, **_):
            return list(text.encode())[:120]

        def render(self, messages, **_):
            return messages[0]["content"]

    path = tmp_path / "asked.jsonl"
    lines = [{"prompt": f"Why {i}?"} for i in range(60)]
    lines += [{"question": f"{i} + 1?"} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, lines)))
    prompts = read_prompts([path], tokenizer=Plain(), template=Plain(), seed=1)
    kinds = {prompt.kind for prompt in prompts}
    assert kinds == {"chat", "arithmetic", "code"}
    assert 0 < sum(prompt.is_held_out for prompt in prompts) < len(prompts) / 5
    again = read_prompts([path], tokenizer=Plain(), template=Plain(), seed=1)
    assert prompts == again
    path.write_text('{"other": 1}')
    with pytest.raises(CheckpointError, match="neither a prompt nor a question"):
        read_prompts([path], tokenizer=Plain(), template=Plain(), seed=1)
