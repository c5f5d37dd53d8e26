"""Nemotron-Labs-Diffusion: left to right, by diffusion and by self-speculation.

Context is always causal; a canvas is seen both ways by its own rows; a causal pass over the
finished canvas settles it and speaks of the next position. Queries grow with position.
"""

from weights.config_fields import ConfigFields
from weights.families.family import (
    AcceptanceDefaults,
    DraftLimit,
    Family,
    FamilyRule,
    Grid,
    Settle,
    Speaks,
)
from weights.families.hf_layout import HF_TABLE, parse_hf_config
from weights.network.config import DraftAdapter, NetworkConfig
from weights.network.tensor_reader import TensorNames

_ADAPTER_FOLDER = "linear_spec_lora"
_ADAPTER = f"{_ADAPTER_FOLDER}/base_model.model.encoder.layers.{{layer}}.self_attn.o_proj."
# The published adapter, where its folder says nothing of its own.
_ADAPTER_RANK, _ADAPTER_ALPHA = 128, 512
_NAMES = TensorNames(
    {part: name.replace("model.", "encoder.", 1) for part, name in HF_TABLE.items()}
    | {
        "head.weight": "diffusion_head.weight",
        "adapter.down.weight": _ADAPTER + "lora_A.weight",
        "adapter.up.weight": _ADAPTER + "lora_B.weight",
    }
)


def _parse(fields: ConfigFields) -> NetworkConfig:
    if fields.text("dlm_paradigm", "bidirectional") != "bidirectional":
        raise fields.refuse("dlm_paradigm", "but only bidirectional is known")
    attention_bias = fields.flag("attention_bias", False)
    return parse_hf_config(
        fields,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        feed_forward_bias=fields.flag("mlp_bias", False),
        draft_adapter=_parse_adapter(fields.section(_ADAPTER_FOLDER)),
    )


def _parse_adapter(fields: ConfigFields | None) -> DraftAdapter | None:
    if fields is None:
        return None
    if fields.texts("target_modules") not in ((), ("o_proj",)):
        raise fields.refuse("target_modules", "but only o_proj is known")
    rank = fields.integer("r", _ADAPTER_RANK)
    if rank < 1:
        raise fields.refuse("r", "but an adapter needs a rank of at least 1")
    return DraftAdapter(rank, fields.number("lora_alpha", float(_ADAPTER_ALPHA)) / rank)


NEMOTRON_LABS_DIFFUSION = Family(
    name="nemotron_labs_diffusion",
    architectures=("NemotronLabsDiffusionModel",),
    model_types=("nemotron_labs_diffusion",),
    parse=_parse,
    names=_NAMES,
    rule=FamilyRule(
        modes=("ar", "diffusion", "speculative"),
        settle=Settle.CAUSAL,
        draft_limit=DraftLimit.CANVAS_END,
        settled_speaks_of=Speaks.NEXT,
        draft_speaks_of=Speaks.OWN,
        grid=Grid.PROMPT,
        block_length=32,
        seeded=True,
        mask_token_id=100,
        acceptance=AcceptanceDefaults("threshold", confidence=0.9),
    ),
    block_length_fields=("block_size",),
)
