"""BD3-LM: block after block, both ways inside a block; position 0 holds the beginning of text.

From: Arriola et al. 2025, Block diffusion; arXiv 2503.09573.
"""

from weights.families.dit import DIT_NAMES, fold_adaptive_norms, parse_dit
from weights.families.family import (
    AcceptanceDefaults,
    DraftLimit,
    Family,
    FamilyRule,
    Grid,
    Settle,
    Speaks,
)

BD3LM = Family(
    name="bd3lm",
    architectures=("BD3LM",),
    model_types=("bd3lm",),
    parse=parse_dit,
    names=DIT_NAMES,
    rule=FamilyRule(
        modes=("diffusion",),
        settle=Settle.BLOCK,
        draft_limit=DraftLimit.CANVAS_END,
        settled_speaks_of=Speaks.NOTHING,
        draft_speaks_of=Speaks.OWN,
        grid=Grid.ABSOLUTE,
        block_length=4,
        suppresses_mask=True,
        acceptance=AcceptanceDefaults("first_hitting"),
    ),
    mask_id_fields=("mask_index", "mask_token_id"),
    block_length_fields=("block_size",),
    mask_is_last=True,
    prepare=fold_adaptive_norms,
)
