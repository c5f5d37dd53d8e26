"""An engine over a golden checkpoint, and the cases computed by the original code."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from kernels import allocate_kv_cache
from sampler.border.engine_config import EngineConfig
from sampler.engine import Engine, EngineLimits
from sampler.step.runner import Runner
from sampler.step.score_spec import Vocabulary
from weights import LoadedModel, RuleOverrides, load_model

GOLDEN = Path(__file__).parents[1] / "golden"
LOGITS_TOLERANCE = 1e-4  # two orders of float32 operations differ by up to 2e-5 here


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One case: its entry in cases.json and its tensors by their short names."""

    entry: dict
    tensors: dict[str, torch.Tensor]


def golden_cases(family: str) -> dict[str, GoldenCase]:
    folder = GOLDEN / family
    entries = json.loads((folder / "cases.json").read_text())["cases"]
    tensors = load_file(folder / "cases.safetensors")
    return {
        entry["name"]: GoldenCase(
            entry,
            {
                name.removeprefix(entry["name"] + "."): tensor
                for name, tensor in tensors.items()
                if name.startswith(entry["name"] + ".")
            },
        )
        for entry in entries
    }


def golden_model(
    family: str, overrides: RuleOverrides | None = None, *, device: str = "cpu"
) -> LoadedModel:
    return load_model(
        GOLDEN / family, dtype=torch.float32, device=torch.device(device), overrides=overrides
    )


def golden_engine(
    model: LoadedModel,
    *,
    eos=(),
    page_size=4,
    context=None,
    num_pages=None,
    new_runner=Runner,
    **options,
) -> Engine:
    """An engine in this process over a loaded model.

    new_runner: makes the runner of a network and a cache, whose last page the engine never uses
    options:    fields of `EngineConfig`
    """
    settings = {"max_sequences": 8, "max_rows": 256, **options}
    config = EngineConfig(model="golden", page_size=page_size, **settings)
    context = context or model.context_length
    device = model.network.token_table.device
    num_pages = num_pages or config.max_sequences * (context // page_size + 1)
    cache = allocate_kv_cache(
        num_layers=model.network.num_layers,
        num_pages=num_pages + 1,
        page_size=page_size,
        num_kv_heads=model.network.num_kv_heads,
        head_dim=model.network.head_dim,
        dtype=torch.float32,
        device=device,
        is_zeroed=model.network.is_row_exact,
    )
    rule = model.family.rule
    return Engine(
        runner=new_runner(model.network, cache),
        rule=rule,
        vocabulary=Vocabulary(
            size=model.config.vocab_size,
            eos_ids=frozenset(eos),
            mask_id=rule.mask_token_id,
            mask_is_hidden=rule.suppresses_mask,
        ),
        config=config,
        limits=EngineLimits(context_length=context, num_pages=num_pages),
        device=device,
    )
