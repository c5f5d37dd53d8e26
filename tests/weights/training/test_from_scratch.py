import itertools
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.weights.training.runs import TINY_ESO_LM, TINY_EVO, flags, write_text
from weights import load_model
from weights.training.from_scratch import FromScratch
from weights.training.recipes import RECIPES

EVO = FromScratch("evo", "s", "An Evo", "About it.", "Its limits.", {"cpu": TINY_EVO})
ESO_LM = FromScratch("eso-lm", "s", "An Eso-LM", "About it.", "Limits.", {"cpu": TINY_ESO_LM})


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text")


@pytest.mark.parametrize(
    ("recipe", "family", "figure"),
    [(EVO, "evo", "canvas_bound_nll"), (ESO_LM, "esolm", "exact_perplexity")],
    ids=["evo", "eso-lm"],
)
def test_a_run_leaves_a_checkpoint_that_loads(tmp_path, text, recipe, family, figure):
    out = recipe.run(flags(recipe, text, tmp_path / "out", "--steps", "7"))
    loaded = load_model(out, dtype=torch.float32, device=torch.device("cpu"))
    assert loaded.family.name == family
    assert (
        loaded.tokenizer.decode(
            loaded.tokenizer.encode("the cat sees a dog.", add_special_tokens=False),
            skip_special_tokens=False,
        )
        == "the cat sees a dog."
    )
    figures = json.loads((out / "figures.json").read_text())
    assert figure in figures["figures"]
    assert figures["training"]["steps"] == 7
    card = (out / "README.md").read_text()
    assert f"estuary train {recipe.name}" in card
    assert figure in card
    assert "stories.txt: made up" in (out / "NOTICE").read_text()
    assert (out / "training_log.jsonl").read_text().count('"step": 7') == 1


def test_what_a_card_says_of_the_calibration_is_what_the_config_says(tmp_path, text):
    out = EVO.run(flags(EVO, text, tmp_path / "out", "--steps", "3"))
    figures = json.loads((out / "figures.json").read_text())["figures"]
    config = json.loads((out / "config.json").read_text())
    assert config["latent"]["calibration"] == figures["calibration"]


class InterruptedScale:
    """A scale whose model is told to stop in its fifth forward."""

    vocab_size = TINY_EVO.vocab_size
    schedule = TINY_EVO.schedule

    def build(self, vocab_size, generator):
        model = TINY_EVO.build(vocab_size, generator)
        calls = itertools.count(1)

        def interrupt(*_):
            if next(calls) == 5:
                os.kill(os.getpid(), signal.SIGTERM)

        model.network.register_forward_hook(interrupt)
        return model


def test_a_run_that_was_stopped_goes_on_with_resume(tmp_path, text):
    interrupted = replace(EVO, scales={"cpu": InterruptedScale()})
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="stopped after step 5; go on with --resume"):
        interrupted.run(flags(EVO, text, out, "--steps", "12"))
    assert not (out / "model.safetensors").exists()
    EVO.run(flags(EVO, text, out, "--steps", "12", "--resume"))
    whole = EVO.run(flags(EVO, text, tmp_path / "whole", "--steps", "12"))
    resumed = load_file(out / "model.safetensors")
    for name, value in load_file(whole / "model.safetensors").items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--resume",), "nothing to resume"),
        (("--minutes", "0"), "above 0"),
        (("--steps", "0"), "above 0"),
    ],
)
def test_flags_that_cannot_be_used_are_refused(tmp_path, text, more, message):
    with pytest.raises(ValueError, match=message):
        EVO.run(flags(EVO, text, tmp_path / "out", *more))


def test_a_run_is_not_overwritten_and_not_mixed_with_another(tmp_path, text):
    out = tmp_path / "out"
    EVO.run(flags(EVO, text, out, "--steps", "1"))
    with pytest.raises(ValueError, match="exists already"):
        EVO.run(flags(EVO, text, out, "--steps", "1"))
    with pytest.raises(ValueError, match="other flags"):
        EVO.run(flags(EVO, text, out, "--steps", "1", "--seed", "2", "--resume"))
    with pytest.raises(ValueError, match="other flags"):
        ESO_LM.run(flags(ESO_LM, text, out, "--steps", "1", "--resume"))


@pytest.mark.parametrize("recipe", RECIPES[:2], ids=lambda recipe: recipe.name)
def test_recipes_of_the_table_have_both_scales(recipe, tmp_path):
    found = flags(recipe, tmp_path, tmp_path, "--scale", "gpu")
    assert (found.scale, found.minutes, found.seed, found.resume) == ("gpu", 30.0, 1, False)
