"""MDLM: everything at once, both ways.

From: Sahoo et al. 2024, Simple and effective masked diffusion language models; arXiv 2406.07524.
"""

from weights.families.dit import DIT_NAMES, fold_adaptive_norms, parse_dit
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

MDLM = Family(
    name="mdlm",
    architectures=("MDLM",),
    model_types=("mdlm",),
    parse=parse_dit,
    names=DIT_NAMES,
    rule=FamilyRule(
        modes=("diffusion",),
        settle=Settle.NEVER,
        order=Order.ANY,
        draft_limit=DraftLimit.EVERYTHING,
        settled_speaks_of=Speaks.NOTHING,
        draft_speaks_of=Speaks.OWN,
        grid=Grid.PROMPT,
        can_infill=True,
        suppresses_mask=True,
        acceptance=AcceptanceDefaults("first_hitting"),
    ),
    mask_id_fields=("mask_index", "mask_token_id"),
    mask_is_last=True,
    prepare=fold_adaptive_norms,
)
