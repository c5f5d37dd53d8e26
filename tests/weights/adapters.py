"""A random canvas adapter for the golden Llama."""

import json

import torch
from safetensors.torch import save_file

from tests.sampler.golden_engine import GOLDEN
from weights import load_model
from weights.files.canvas_adapter import fingerprint
from weights.files.checkpoint import open_checkpoint

BASE = GOLDEN / "llama"
LEVELS, RANK, OFFSETS = 8, 4, 6
CALIBRATION = [[0.0, 0.0], [0.5, 0.4], [1.0, 0.8]]


def load(adapter=None, path=BASE, **options):
    return load_model(
        path,
        dtype=torch.float32,
        device=torch.device("cpu"),
        canvas_adapter=adapter,
        **options,
    )


def write_adapter(folder, *, config=None, base=None, tensors=None, drop=()):
    """A random adapter for the golden Llama; returns its folder."""
    base_config = load().config
    generator = torch.Generator().manual_seed(1)
    hidden = base_config.hidden_size

    def random(*shape):
        return 0.1 * torch.randn(shape, generator=generator)

    stored = {
        "latent.input.weight": torch.eye(hidden) + random(hidden, hidden),
        "latent.time.weight": random(LEVELS + 1, hidden),
        "latent.offset.weight": random(OFFSETS, hidden),
    }
    sizes = {"output": base_config.attended_size, "down": base_config.feed_forward_size}
    for layer in range(base_config.num_layers):
        for matrix, size in sizes.items():
            stored[f"latent.layers.{layer}.{matrix}.down.weight"] = random(RANK, size)
            stored[f"latent.layers.{layer}.{matrix}.up.weight"] = random(hidden, RANK)
    stored.update(tensors or {})
    folder.mkdir()
    save_file({k: v for k, v in stored.items() if k not in drop}, folder / "model.safetensors")
    latent = {
        "size": hidden,
        "num_levels": LEVELS,
        "speaks_of": "next",
        "width": 4,
        "max_offset": OFFSETS,
        "rank": RANK,
        "matrices": ["output", "down"],
        "embedding_scale": float(load().network.token_table.pow(2).mean().sqrt()),
        "calibration": CALIBRATION,
        **(config or {}),
    }
    values = {
        "base": {
            "family": "llama",
            "fingerprint": fingerprint(open_checkpoint(BASE).tensors),
            **(base or {}),
        },
        "latent": {name: value for name, value in latent.items() if value is not None},
    }
    (folder / "config.json").write_text(json.dumps(values))
    return folder
