"""Dream, Dream-Coder and DiffuCoder: Qwen2 that sees the whole text at once, shifted by one.

From: Ye et al. 2025, Dream 7B; arXiv 2508.15487.
"""

from weights.families.family import (
    AcceptanceDefaults,
    DraftLimit,
    Family,
    FamilyRule,
    Grid,
    Order,
    Settle,
    Speaks,
)
from weights.families.hf_layout import HF_NAMES
from weights.families.qwen2 import parse_qwen2

DREAM = Family(
    name="dream",
    architectures=("DreamModel",),
    model_types=("Dream",),
    parse=parse_qwen2,
    names=HF_NAMES,
    # The default of the authors' generation_utils.py.
    temperature=0.0,
    rule=FamilyRule(
        modes=("diffusion",),
        settle=Settle.NEVER,
        order=Order.ANY,
        draft_limit=DraftLimit.EVERYTHING,
        settled_speaks_of=Speaks.NOTHING,
        draft_speaks_of=Speaks.NEXT,
        grid=Grid.PROMPT,
        mask_token_id=151666,
        can_infill=True,
        # Fast-dLLM's rule (arXiv 2505.22618).
        acceptance=AcceptanceDefaults("threshold", confidence=0.9),
    ),
    mask_tokens=("<|mask|>",),
)
