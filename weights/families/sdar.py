"""SDAR and TraDo: Qwen3 that denoises block after block, both ways inside a block.

From: Cheng et al. 2025, SDAR; arXiv 2510.06303. The published config has neither the mask id nor
the block length; both are constants of the authors' code.
"""

from weights.families.family import (
    AcceptanceDefaults,
    DraftLimit,
    Family,
    FamilyRule,
    Grid,
    Settle,
    Speaks,
)
from weights.families.hf_layout import HF_NAMES
from weights.families.qwen3 import parse_qwen3, parse_qwen3_moe

_RULE = FamilyRule(
    modes=("diffusion",),
    settle=Settle.BLOCK,
    draft_limit=DraftLimit.CANVAS_END,
    settled_speaks_of=Speaks.NOTHING,
    draft_speaks_of=Speaks.OWN,
    grid=Grid.ABSOLUTE,
    block_length=4,
    mask_token_id=151669,
    acceptance=AcceptanceDefaults("threshold_or_quota", confidence=0.85, steps=4),
)

SDAR = Family(
    name="sdar",
    architectures=("SDARForCausalLM",),
    model_types=("sdar",),
    parse=parse_qwen3,
    names=HF_NAMES,
    rule=_RULE,
    block_length_fields=("block_size",),
    mask_tokens=("<|MASK|>", "<MASK>"),
)

SDAR_MOE = Family(
    name="sdar_moe",
    architectures=("SDARMoeForCausalLM",),
    model_types=("sdar_moe",),
    parse=parse_qwen3_moe,
    names=HF_NAMES,
    rule=_RULE,
    block_length_fields=("block_size",),
    mask_tokens=("<|MASK|>", "<MASK>"),
)
