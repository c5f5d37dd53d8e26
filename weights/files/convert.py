"""Offline conversion of a Lightning checkpoint (Eso-LM, MDLM, BD3-LM) to a folder we serve.

The weights that count are the moving average (EMA), kept as a list without names in the order of
the network's parameters; the plain state dict is other, worse weights.
"""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from weights.config_fields import ConfigFields, Json
from weights.errors import CheckpointError
from weights.families.esolm import refuse_variant_a
from weights.files.lightning_file import plain_config, read_lightning_file

_ARCHITECTURES = {"esolm": "EsoLM", "mdlm": "MDLM", "bd3lm": "BD3LM"}
_PREFIX = "backbone."
_BUFFERS = re.compile(r"backbone\.rotary_emb\.inv_freq")
_TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
_DEFAULT_LENGTH = 1024


def convert_lightning(
    checkpoint: Path,
    target: Path,
    *,
    family: str | None = None,
    model_length: int | None = None,
    tokenizer_folder: Path | None = None,
) -> Path:
    """Write a folder with config.json and model.safetensors from a `.ckpt`, and return it.

    target:           a folder that does not exist yet
    family:           esolm, mdlm or bd3lm, where the checkpoint's own config cannot be read
    model_length:     the context in tokens, likewise
    tokenizer_folder: its tokenizer files are copied along

    Raises CheckpointError when the file is broken, has no moving average, or is a variant that
    cannot be served.
    """
    if target.exists():
        raise CheckpointError(f"{target} exists already")
    content = read_lightning_file(checkpoint)
    settings = ConfigFields(_settings(content), str(checkpoint))
    tensors = _averaged_tensors(content, checkpoint)
    config = _config(tensors, settings, checkpoint, family=family, model_length=model_length)
    target.mkdir(parents=True)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    if tokenizer_folder is not None:
        for name in _TEXT_FILES:
            if (tokenizer_folder / name).is_file():
                shutil.copy(tokenizer_folder / name, target / name)
    return target


def _settings(content: dict[object, object]) -> dict[str, Json]:
    """The training config as plain values; empty where it cannot be read."""
    hyper = plain_config(content.get("hyper_parameters"))
    config = hyper.get("config") if isinstance(hyper, dict) else None
    # Through JSON, which drops nothing we look at and holds nothing but plain values.
    settings: dict[str, Json] = json.loads(json.dumps(config or {}, default=str))
    return settings


def _averaged_tensors(content: dict[object, object], path: Path) -> dict[str, Tensor]:
    """Name the tensors of the moving average by the state dict's parameters, in its order."""
    state, average = content.get("state_dict"), content.get("ema")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} has no state_dict")
    shadow = average.get("shadow_params") if isinstance(average, dict) else None
    if not isinstance(shadow, list):
        raise CheckpointError(f"{path} has no moving average of its weights (ema)")
    named = {
        str(name).replace("_orig_mod.", ""): tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and str(name).startswith(_PREFIX)
    }
    buffers = {name: tensor for name, tensor in named.items() if _BUFFERS.fullmatch(name)}
    parameters = [name for name in named if name not in buffers]
    if len(parameters) != len(shadow):
        raise CheckpointError(
            f"{path}: the moving average has {len(shadow)} tensors, but the network "
            f"{len(parameters)} parameters"
        )
    averaged = dict(buffers)
    for name, tensor in zip(parameters, shadow, strict=True):
        if not isinstance(tensor, Tensor) or tensor.shape != named[name].shape:
            raise CheckpointError(
                f"{path}: the moving average does not fit parameter {name}", tensor=name
            )
        averaged[name] = tensor
    return {name: tensor.to(torch.float32).contiguous() for name, tensor in averaged.items()}


def _config(
    tensors: dict[str, Tensor],
    settings: ConfigFields,
    path: Path,
    *,
    family: str | None,
    model_length: int | None,
) -> dict[str, Json]:
    """Write config.json: sizes from the tensors, the rest from the training config."""
    algorithm = settings.section("algo") or ConfigFields({}, str(path))
    model = settings.section("model") or ConfigFields({}, str(path))
    name = family or algorithm.text("name", "")
    if name not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise CheckpointError(f"{path} is of family {name or 'unknown'}; known are {known}")
    if name == "esolm":
        refuse_variant_a(algorithm)
    vocab_size, hidden_size = _shape(tensors, "vocab_embed.embedding", path)
    head_dim = 2 * _shape(tensors, "rotary_emb.inv_freq", path)[0]
    config: dict[str, Json] = {
        "architectures": [_ARCHITECTURES[name]],
        "model_type": name,
        "vocab_size": vocab_size,
        "mask_index": vocab_size - 1,
        "model_length": model_length or model.integer("length", _DEFAULT_LENGTH),
        "hidden_size": hidden_size,
        "cond_dim": _shape(tensors, "sigma_map.mlp.0.weight", path)[0],
        "n_blocks": sum(key.endswith(".attn_qkv.weight") for key in tensors),
        "n_heads": hidden_size // head_dim,
        "time_conditioning": algorithm.flag("time_conditioning", False),
        "torch_dtype": "float32",
    }
    if name == "bd3lm":
        config["block_size"] = settings.integer("block_size")
    return config


def _shape(tensors: dict[str, Tensor], name: str, path: Path) -> tuple[int, ...]:
    tensor = tensors.get(_PREFIX + name)
    if tensor is None:
        raise CheckpointError(f"{path} has no tensor {_PREFIX + name}", tensor=_PREFIX + name)
    return tuple(tensor.shape)
