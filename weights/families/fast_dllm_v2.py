"""Fast-dLLM v2: Qwen2 that denoises block after block and keeps the shift of its base.

From: Wu et al. 2025, Fast-dLLM v2; arXiv 2509.26328. The mask id is a constant of the authors'
code.
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
from weights.families.qwen2 import parse_qwen2

FAST_DLLM_V2 = Family(
    name="fast_dllm_v2",
    architectures=("Fast_dLLM_QwenForCausalLM",),
    model_types=("Fast_dLLM_Qwen",),
    parse=parse_qwen2,
    names=HF_NAMES,
    rule=FamilyRule(
        modes=("diffusion",),
        settle=Settle.BLOCK,
        draft_limit=DraftLimit.CANVAS_END,
        settled_speaks_of=Speaks.NEXT,
        draft_speaks_of=Speaks.NEXT,
        grid=Grid.ABSOLUTE,
        block_length=32,
        sub_block_length=8,
        seeded=True,
        mask_token_id=151665,
        acceptance=AcceptanceDefaults("threshold", confidence=0.9),
    ),
    block_length_fields=("bd_size",),
    mask_tokens=("|<MASK>|",),
)
