"""The table of families, and which one a config.json belongs to."""

from weights.config_fields import ConfigFields
from weights.errors import CheckpointError
from weights.families.bd3lm import BD3LM
from weights.families.dream import DREAM
from weights.families.esolm import ESOLM
from weights.families.evo import EVO, latent_rule
from weights.families.family import (
    AcceptanceDefaults,
    DraftLimit,
    Family,
    FamilyRule,
    Grid,
    LatentRule,
    Order,
    RuleOverrides,
    Settle,
    Speaks,
    resolve_rule,
)
from weights.families.fast_dllm_v2 import FAST_DLLM_V2
from weights.families.gpt2 import GPT2
from weights.families.llada import LLADA
from weights.families.llada2 import LLADA2
from weights.families.llama import LLAMA
from weights.families.mdlm import MDLM
from weights.families.nemotron_labs_diffusion import NEMOTRON_LABS_DIFFUSION
from weights.families.qwen2 import QWEN2
from weights.families.qwen3 import QWEN3, QWEN3_MOE
from weights.families.sdar import SDAR, SDAR_MOE
from weights.families.stable_diffcoder import STABLE_DIFFCODER
from weights.families.wedlm import WEDLM

__all__ = [
    "FAMILIES",
    "AcceptanceDefaults",
    "DraftLimit",
    "Family",
    "FamilyRule",
    "Grid",
    "LatentRule",
    "Order",
    "RuleOverrides",
    "Settle",
    "Speaks",
    "find_family",
    "latent_rule",
    "resolve_rule",
]

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    GPT2,
    SDAR,
    SDAR_MOE,
    NEMOTRON_LABS_DIFFUSION,
    LLADA2,
    LLADA,
    DREAM,
    FAST_DLLM_V2,
    ESOLM,
    BD3LM,
    MDLM,
    WEDLM,
    STABLE_DIFFCODER,
    EVO,
)


def find_family(fields: ConfigFields) -> Family:
    """Find the family of a config.json.

    `architectures` decides where it is there: several families share a `model_type`. Raises
    CheckpointError when neither is known.
    """
    architectures = fields.texts("architectures")
    for family in FAMILIES:
        if any(name in family.architectures for name in architectures):
            return family
    model_type = fields.text("model_type", "") if fields.has("model_type") else None
    if architectures:
        raise CheckpointError(
            f"{fields.where}: the architecture {', '.join(architectures)} is not supported; "
            f"supported are {_known_architectures()}"
        )
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    raise CheckpointError(
        f"{fields.where} names neither a supported architecture nor a supported model_type "
        f"({model_type}); supported are {_known_architectures()}"
    )


def _known_architectures() -> str:
    return ", ".join(name for family in FAMILIES for name in family.architectures)
