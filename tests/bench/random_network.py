"""Networks of a real architecture with random weights, and engines over them."""

import torch

from kernels import allocate_kv_cache, record_graph
from sampler.border.engine_config import EngineConfig
from sampler.engine import Engine, EngineLimits
from sampler.step.graph_runner import graph_runner
from sampler.step.runner import Runner
from sampler.step.score_spec import Vocabulary
from weights import FamilyRule, NetworkConfig, Placement, build_network
from weights.network.config import Block, RotaryConfig

PAGE_SIZE = 16


class RandomParts:
    """Hands out random tensors of whatever shape is asked for."""

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)

    def take(self, part, shape, _layer=None, _expert=None):
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.1
        tensor = scale * torch.randn(shape, generator=self.generator)
        return tensor + 1 if part.endswith("norm.weight") else tensor

    def has(self, *_part):
        return True


def diffusion_transformer(
    *,
    max_positions,
    hidden=768,
    layers=12,
    heads=12,
    vocabulary=50_258,
    dtype=torch.float32,
    device="cpu",
):
    """The 170 M transformer of MDLM, BD3-LM and Eso-LM with its norms folded.

    From: Sahoo et al. 2025, arXiv 2506.01928, the authors' `small` configuration.
    """
    config = NetworkConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        feed_forward_size=4 * hidden,
        max_positions=max_positions,
        norm_eps=1e-5,
        block=Block.GELU,
        rotary=RotaryConfig(theta=10_000.0, rotary_dim=hidden // heads),
        qkv_bias=True,
        feed_forward_bias=True,
        head_bias=True,
    )
    placement = Placement(dtype, torch.device(device))
    return build_network(config, RandomParts(), placement)


def engine_over(
    network, rule: FamilyRule, *, context: int, num_sequences: int = 1, cuda_graphs: bool = True
) -> Engine:
    """An engine whose cache holds `num_sequences` texts of `context` tokens, on its device."""
    device = network.token_table.device
    config = EngineConfig(
        model="random",
        max_sequences=num_sequences,
        max_rows=max(2048, context),
        cuda_graphs=cuda_graphs,
    )
    num_pages = num_sequences * (context // PAGE_SIZE + 2)
    cache = allocate_kv_cache(
        num_layers=network.num_layers,
        num_pages=num_pages,
        page_size=config.page_size,
        num_kv_heads=network.num_kv_heads,
        head_dim=network.head_dim,
        dtype=network.token_table.dtype,
        device=device,
    )
    vocabulary = Vocabulary(
        size=network.config.vocab_size,
        eos_ids=frozenset(),
        mask_id=rule.mask_token_id,
        mask_is_hidden=rule.suppresses_mask,
    )
    runner = Runner(network, cache)
    if device.type == "cuda" and config.cuda_graphs:
        runner = graph_runner(
            runner,
            record=record_graph(device),
            rule=rule,
            config=config,
            context_length=context,
            suppressed=vocabulary.hidden_ids,
        )
    return Engine(
        runner=runner,
        rule=rule,
        vocabulary=vocabulary,
        config=config,
        limits=EngineLimits(context_length=context, num_pages=num_pages),
        device=device,
    )
