"""`load_gemma`: a Gemma-4 or DiffusionGemma checkpoint on disk to its network."""

from pathlib import Path

import torch

from weights.families.diffusion_gemma import parse_gemma
from weights.files.checkpoint import open_checkpoint
from weights.gemma_network import GemmaNetwork, build_gemma_network
from weights.network.linear import Placement
from weights.network.tensor_reader import TensorReader


def load_gemma(path: Path, *, dtype: torch.dtype, device: torch.device) -> GemmaNetwork:
    """Load the network of a DiffusionGemma or Gemma-4 checkpoint.

    Raises CheckpointError when it is broken, incomplete or of another kind.
    """
    checkpoint = open_checkpoint(path)
    config, names = parse_gemma(checkpoint.config)
    reader = TensorReader(checkpoint.tensors, names)
    network = build_gemma_network(
        config, reader, Placement(dtype, device, keeps_packed=device.type != "cpu")
    )
    reader.finish()
    return network
