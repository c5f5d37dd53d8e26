"""Eso-LM (variant B): any order, causal over the order, so that the cache is exact.

From: Sahoo et al. 2025, Esoteric language models; arXiv 2506.01928.
"""

from weights.config_fields import ConfigFields
from weights.families.dit import DIT_NAMES, fold_adaptive_norms, parse_dit
from weights.families.family import (
    AcceptanceDefaults,
    DraftLimit,
    Family,
    FamilyRule,
    Order,
    Settle,
    Speaks,
)
from weights.network.config import NetworkConfig


def _parse(fields: ConfigFields) -> NetworkConfig:
    refuse_variant_a(fields)
    return parse_dit(fields)


def refuse_variant_a(fields: ConfigFields) -> None:
    """Raise CheckpointError for attention masks other than variant B's."""
    for name in ("diffusion_attn_mode", "sequential_attn_mode"):
        if fields.text(name, "causal") != "causal":
            raise fields.refuse(name, "but only variant B of Eso-LM (causal) can be served")


ESOLM = Family(
    name="esolm",
    architectures=("EsoLM",),
    model_types=("EsoLM", "esolm"),
    parse=_parse,
    names=DIT_NAMES,
    rule=FamilyRule(
        modes=("ar", "diffusion", "speculative"),
        settle=Settle.CAUSAL,
        order=Order.ANY,
        draft_limit=DraftLimit.OWN_ENTRY,
        settled_speaks_of=Speaks.NOTHING,
        draft_speaks_of=Speaks.OWN,
        can_infill=True,
        suppresses_mask=True,
        acceptance=AcceptanceDefaults("rank_order", alpha_0=1.0, steps=1024),
    ),
    mask_id_fields=("mask_index", "mask_token_id"),
    mask_is_last=True,
    prepare=fold_adaptive_norms,
)
