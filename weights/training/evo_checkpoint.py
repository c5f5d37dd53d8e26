"""An Evo network as the files that serving reads: tensors by name, and config.json."""

import torch
from torch import Tensor

from weights.config_fields import Json
from weights.training.data.text import END_OF_TEXT_ID
from weights.training.evo_network import EvoNetwork, EvoShape


@torch.no_grad()
def served_tensors(network: EvoNetwork) -> dict[str, Tensor]:
    """The checkpoint's tensors by name."""
    body = {f"model.{name}": value.detach() for name, value in network.model.named_parameters()}
    mark = network.latent.mark.detach()
    time = mark.expand(network.shape.num_levels + 1, -1).clone()
    # What is final is marked by nothing.
    time[0] = 0
    return body | {
        "latent.embedding.weight": network.unit_embedding().detach(),
        "latent.time.weight": time,
    }


def served_config(
    shape: EvoShape, *, width: int, calibration: Json, decoding: dict[str, Json]
) -> dict[str, Json]:
    """config.json; width, calibration and decoding are those of `LatentConfig`."""
    return {
        "architectures": ["EvoForCausalLM"],
        "model_type": "evo",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.feed_forward_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": shape.max_positions,
        "learned_positions": shape.learned_positions,
        "tie_word_embeddings": True,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "torch_dtype": "float16",
        "latent": {
            "size": shape.latent_size,
            "num_levels": shape.num_levels,
            "speaks_of": "own",
            "input": "likelihood",
            "output_prior": True,
            "width": width,
            "calibration": calibration,
            "decoding": decoding,
        },
    }
