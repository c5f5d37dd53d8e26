"""WeDLM: Qwen2 or Qwen3 with causal attention over a reordered window.

Filled tokens of the window stand before its masks, each with its own position; the filled prefix
settles, the rest is run again. From: Liu et al. 2025, WeDLM; arXiv 2512.22737.
"""

from weights.config_fields import ConfigFields
from weights.families.family import (
    AcceptanceDefaults,
    DraftLimit,
    Family,
    FamilyRule,
    Settle,
    Speaks,
)
from weights.families.hf_layout import HF_NAMES, parse_hf_config
from weights.network.config import NetworkConfig


def _parse(fields: ConfigFields) -> NetworkConfig:
    return parse_hf_config(
        fields,
        qkv_bias=fields.flag("attention_bias", False),
        qk_norm=fields.flag("qk_norm", False),
    )


WEDLM = Family(
    name="wedlm",
    architectures=("WeDLMForCausalLM",),
    model_types=("wedlm",),
    parse=_parse,
    names=HF_NAMES,
    rule=FamilyRule(
        modes=("diffusion",),
        settle=Settle.CAUSAL,
        draft_limit=DraftLimit.OWN_ENTRY,
        settled_speaks_of=Speaks.NOTHING,
        draft_speaks_of=Speaks.OWN,
        width=16,
        mask_token_id=151665,
        acceptance=AcceptanceDefaults("entropy_distance", entropy_bound=0.4, distance_weight=0.02),
    ),
)
