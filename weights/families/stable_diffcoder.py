"""Stable-DiffCoder: Llama that denoises short blocks; its config calls itself `llama`."""

from weights.families.family import (
    AcceptanceDefaults,
    DraftLimit,
    Family,
    FamilyRule,
    Grid,
    Settle,
    Speaks,
)
from weights.families.hf_layout import HF_NAMES, parse_hf_config

STABLE_DIFFCODER = Family(
    name="stable_diffcoder",
    architectures=("StableDiffcoderForCausalLM", "StableDiffCoderForCausalLM"),
    model_types=("stable_diffcoder",),
    parse=parse_hf_config,
    names=HF_NAMES,
    rule=FamilyRule(
        modes=("diffusion",),
        settle=Settle.BLOCK,
        draft_limit=DraftLimit.CANVAS_END,
        settled_speaks_of=Speaks.NOTHING,
        draft_speaks_of=Speaks.OWN,
        grid=Grid.ABSOLUTE,
        block_length=4,
        mask_token_id=5,
        acceptance=AcceptanceDefaults("threshold", confidence=0.95),
    ),
    block_length_fields=("block_size", "block_length"),
)
