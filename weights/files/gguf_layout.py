"""GGUF metadata and tensor names in the words of the Hugging Face layout."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from weights.config_fields import ConfigFields, Json
from weights.errors import CheckpointError
from weights.files.gguf_file import GgufFile

_HF_BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_HF_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_OLMO_BLOCK = {
    "attn_norm.weight": "attn_norm.weight",
    "ffn_norm.weight": "ff_norm.weight",
    "attn_q.weight": "q_proj.weight",
    "attn_k.weight": "k_proj.weight",
    "attn_v.weight": "v_proj.weight",
    "attn_output.weight": "attn_out.weight",
    "ffn_gate.weight": "ff_proj.weight",
    "ffn_up.weight": "up_proj.weight",
    "ffn_down.weight": "ff_out.weight",
}
_OLMO_TOP = {
    "token_embd.weight": "model.transformer.wte.weight",
    "output_norm.weight": "model.transformer.ln_f.weight",
    "output.weight": "model.transformer.ff_out.weight",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class _Architecture:
    """How one GGUF architecture translates.

    hf_name:     its name in `architectures` of a config.json
    is_permuted: rows of q and k are interleaved for llama.cpp's rotary embedding
    """

    hf_name: str
    model_type: str
    is_permuted: bool
    block_prefix: str = "model.layers."
    block: tuple[tuple[str, str], ...] = tuple(_HF_BLOCK.items())
    top: tuple[tuple[str, str], ...] = tuple(_HF_TOP.items())


_ARCHITECTURES = {
    "llama": _Architecture("LlamaForCausalLM", "llama", is_permuted=True),
    "qwen2": _Architecture("Qwen2ForCausalLM", "qwen2", is_permuted=False),
    "qwen3": _Architecture("Qwen3ForCausalLM", "qwen3", is_permuted=False),
    "dream": _Architecture("DreamModel", "Dream", is_permuted=False),
    "llada": _Architecture(
        "LLaDAModelLM",
        "llada",
        is_permuted=True,
        block_prefix="model.transformer.blocks.",
        block=tuple(_OLMO_BLOCK.items()),
        top=tuple(_OLMO_TOP.items()),
    ),
}


class GgufStore:
    """Tensors of a GGUF file under the names, and with the row order, of the HF layout."""

    def __init__(self, file: GgufFile) -> None:
        """Translate names; raises CheckpointError for an unknown architecture."""
        self._file = file
        self._architecture = _find_architecture(file)
        self._head_dim = _head_dim(_fields(file))
        # Rotary factors are part of the config, not a weight.
        self._stored = {
            self._translate(name): name for name in file.names() if name != _ROPE_FACTORS
        }

    def names(self) -> Iterable[str]:
        """All names."""
        return self._stored.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._file.shape(self._stored[name])

    def tensor(self, name: str) -> Tensor:
        """Read a tensor as float32."""
        stored = self._stored[name]
        values = self._file.tensor(stored)
        if not self._architecture.is_permuted or not re.search(r"attn_[qk]\.", stored):
            return values
        if values.shape[0] % self._head_dim:
            raise CheckpointError(
                f"tensor {stored} has {values.shape[0]} rows, no multiple of the head width "
                f"{self._head_dim}",
                tensor=stored,
            )
        return half_split_rows(values, head_dim=self._head_dim)

    def _translate(self, name: str) -> str:
        match = _BLOCK.fullmatch(name)
        if match is None:
            return dict(self._architecture.top).get(name, name)
        suffix = dict(self._architecture.block).get(match[2])
        return name if suffix is None else f"{self._architecture.block_prefix}{match[1]}.{suffix}"


def half_split_rows(values: Tensor, *, head_dim: int) -> Tensor:
    """Undo the row order of interleaved rotary pairs: [.., 2 i + s, ..] -> [.., s, i, ..].

    values: rows of all heads, [H * D] or [H * D, in]
    """
    pairs = values.reshape(-1, head_dim // 2, 2, *values.shape[1:])  # [H, D / 2, 2, ...]
    return pairs.transpose(1, 2).reshape(values.shape)


def config_from_gguf(file: GgufFile) -> dict[str, Json]:
    """Write the metadata as the config.json of the same model."""
    architecture = _find_architecture(file)
    fields = _fields(file)
    vocab_size = file.shape("token_embd.weight")[0] if _has(file, "token_embd.weight") else 0
    names = ConfigFields(file.metadata, str(file.path))
    context = fields.integer("context_length")
    common: dict[str, Json] = {
        "architectures": [architecture.hf_name],
        "model_type": architecture.model_type,
        "vocab_size": vocab_size,
    }
    for name, key in (
        ("bos_token_id", "bos_token_id"),
        ("eos_token_id", "eos_token_id"),
        ("padding_token_id", "pad_token_id"),
        ("mask_token_id", "mask_token_id"),
    ):
        if names.has(f"tokenizer.ggml.{name}"):
            common[key] = names.integer(f"tokenizer.ggml.{name}")
    if architecture.model_type == "llada":
        return {**common, **_olmo_sizes(fields, context), "weight_tying": _is_tied(file)}
    return {
        **common,
        **_hf_sizes(fields, context),
        "tie_word_embeddings": _is_tied(file),
        "rope_scaling": _rope_scaling(file, fields),
    }


def _hf_sizes(fields: ConfigFields, context: int) -> dict[str, Json]:
    num_heads = fields.integer("attention.head_count")
    head_dim = _head_dim(fields)
    return {
        "hidden_size": fields.integer("embedding_length"),
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_hidden_layers": fields.integer("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.number("rope.freq_base", 10000.0),
        "partial_rotary_factor": fields.integer("rope.dimension_count", head_dim) / head_dim,
    }


def _olmo_sizes(fields: ConfigFields, context: int) -> dict[str, Json]:
    num_heads = fields.integer("attention.head_count")
    return {
        "d_model": fields.integer("embedding_length"),
        "mlp_hidden_size": fields.integer("feed_forward_length"),
        "n_layers": fields.integer("block_count"),
        "n_heads": num_heads,
        "n_kv_heads": fields.integer("attention.head_count_kv", num_heads),
        "max_sequence_length": context,
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.number("rope.freq_base", 10000.0),
    }


def _rope_scaling(file: GgufFile, fields: ConfigFields) -> Json:
    if _has(file, _ROPE_FACTORS):
        factors: list[Json] = list(file.tensor(_ROPE_FACTORS).tolist())
        return {"rope_type": "factors", "factors": factors}
    kind = fields.text("rope.scaling.type", "none")
    if kind == "none":
        return None
    scaling: dict[str, Json] = {"rope_type": kind, "factor": fields.number("rope.scaling.factor")}
    if fields.has("rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = fields.integer(
            "rope.scaling.original_context_length"
        )
    return scaling


def _find_architecture(file: GgufFile) -> _Architecture:
    name = ConfigFields(file.metadata, str(file.path)).text("general.architecture")
    architecture = _ARCHITECTURES.get(name)
    if architecture is None:
        known = ", ".join(_ARCHITECTURES)
        raise CheckpointError(
            f"{file.path}: the GGUF architecture {name} is not supported; supported are {known}"
        )
    return architecture


def _fields(file: GgufFile) -> ConfigFields:
    """The metadata fields of the architecture, without its name before them."""
    where = str(file.path)
    prefix = ConfigFields(file.metadata, where).text("general.architecture") + "."
    return ConfigFields(
        {
            name.removeprefix(prefix): value
            for name, value in file.metadata.items()
            if name.startswith(prefix)
        },
        where,
    )


def _head_dim(fields: ConfigFields) -> int:
    heads = max(fields.integer("attention.head_count"), 1)
    return fields.integer("attention.key_length", fields.integer("embedding_length") // heads)


def _has(file: GgufFile, name: str) -> bool:
    return name in set(file.names())


def _is_tied(file: GgufFile) -> bool:
    return not _has(file, "output.weight")
