"""Whole decodes of a golden checkpoint of every kind of family, for comparing ways to run steps."""

from pathlib import Path

import torch

from sampler.step.latent_store import LatentStore
from sampler.step.runner import Runner
from tests.sampler.golden_engine import golden_engine, golden_model
from tests.tiny import request, run_all
from weights import RuleOverrides, load_model

# The checkpoint and what its config is silent about, and a decoding for it.
CASES = {
    "llama": (None, {}),
    "qwen3": (None, {}),
    "gpt2": (None, {}),
    "sdar": (None, {"confidence": 0.5}),
    "fast_dllm_v2": (RuleOverrides(mask_token_id=155, block_length=8), {"confidence": 0.5}),
    "bd3lm": (None, {}),
    "llada2": (RuleOverrides(mask_token_id=155, block_length=8), {"confidence": 0.5}),
    "llada": (None, {"confidence": 0.5, "sub_block_length": 8}),
    "dream": (None, {"confidence": 0.5}),
    "mdlm": (None, {}),
    "nemotron_labs_diffusion": (None, {"mode": "diffusion", "confidence": 0.7}),
    "nemotron_labs_diffusion/ar": (None, {"mode": "ar"}),
    "nemotron_labs_diffusion/speculative": (None, {"mode": "speculative"}),
    "esolm": (None, {"mode": "diffusion", "steps": 6, "alpha_0": 0.6}),
    "esolm/speculative": (None, {"mode": "speculative", "width": 3}),
}

# Steps with latents are never replayed; the checkpoint comes with the package.
LATENT_CASES = {"evo": (None, {"mode": "diffusion"})}
EXAMPLES = Path(__file__).parents[2] / "weights" / "examples"


def case_model(name, device="cpu"):
    folder = name.split("/")[0]
    if name in LATENT_CASES:
        return load_model(EXAMPLES / folder, dtype=torch.float32, device=torch.device(device))
    return golden_model(folder, CASES[name][0], device=device)


def case_engine(name, device="cpu", *, context=32):
    """An engine that runs every step launch by launch."""

    def new_runner(network, cache):
        latents = network.latent and LatentStore(network.latent, num_seats=8)
        return Runner(network, cache, latents)

    return golden_engine(case_model(name, device), context=context, new_runner=new_runner)


def case_requests(name, *, max_tokens=16, **params):
    """Four requests with prompts of different lengths, drawn with different seeds."""
    return [
        request(
            str(number),
            [(7 * i + 3 * number) % 90 + 1 for i in range(4 + 3 * number)],
            max_tokens=max_tokens,
            decoding=(CASES | LATENT_CASES)[name][1],
            seed=number,
            **params,
        )
        for number in range(4)
    ]


def answers_of(engine, requests):
    """The tokens of every request, by its id."""
    return {one: tokens for one, (tokens, _) in run_all(engine, *requests).items()}


def answers_on(device, name, **params):
    """The tokens that the engine gives on a device, launch by launch."""
    return answers_of(case_engine(name, device), case_requests(name, **params))


def hidden_ids(model):
    """The ids that specs of a model leave out of every probability."""
    rule = model.family.rule
    return (rule.mask_token_id,) if rule.suppresses_mask else ()
