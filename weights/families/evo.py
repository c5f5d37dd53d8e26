"""Evo (our reading of arXiv 2603.06617): per-token latents between noise and a token's embedding.

Only the paper's abstract is public. What is implemented here is a reading that is consistent with
each of its sentences, and compatible with nothing but itself:

    z_i(t_i) = (1 - t_i) e(x_i) + t_i noise        a latent of progress t_i, 1 unknown, 0 final
    p_i = softmax(f(z, t)_i),  u_i = (z_i - E_p[e]) / t_i,  dz_i = u_i dt_i       one vector field

Decoding moves every token's t from 1 to 0 along a path of its own. One token after the other, in
one jump each, is autoregressive decoding; all at the same t is diffusion. Settled tokens are
causal, so their keys and values are exact; the canvas sees everything before it and itself.
"""

from dataclasses import replace

from weights.config_fields import ConfigFields
from weights.families.family import (
    AcceptanceDefaults,
    DraftLimit,
    Family,
    FamilyRule,
    LatentRule,
    Settle,
    Speaks,
)
from weights.families.hf_layout import HF_TABLE, parse_hf_config
from weights.network.config import NetworkConfig
from weights.network.latent import LATENT_TABLE
from weights.network.latent_config import LatentConfig, parse_latent
from weights.network.tensor_reader import TensorNames


def latent_rule(latent: LatentConfig) -> FamilyRule:
    """How a model with these latents decodes.

    Drafts that speak of the next position, as the base's rows do, can be verified by it.
    """
    modes = ("ar", "diffusion", "speculative") if latent.speaks_of_next else ("ar", "diffusion")
    return FamilyRule(
        modes=modes,
        settle=Settle.CAUSAL,
        draft_limit=DraftLimit.CANVAS_END,
        settled_speaks_of=Speaks.NEXT,
        draft_speaks_of=Speaks.NEXT if latent.speaks_of_next else Speaks.OWN,
        width=latent.width,
        acceptance=AcceptanceDefaults("latent"),
        latent=LatentRule(
            num_levels=latent.num_levels,
            calibration=latent.calibration,
            defaults=latent.defaults,
        ),
    )


def _parse(fields: ConfigFields) -> NetworkConfig:
    config = parse_hf_config(fields, latent=parse_latent(fields))
    return replace(config, learned_positions=fields.flag("learned_positions", False))


_POSITIONS = {"positions": "model.embed_positions.weight"}
EVO = Family(
    name="evo",
    architectures=("EvoForCausalLM",),
    model_types=("evo",),
    parse=_parse,
    names=TensorNames(HF_TABLE | LATENT_TABLE | _POSITIONS),
    rule=FamilyRule(),
)
