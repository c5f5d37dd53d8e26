"""`load_model`: a checkpoint on disk to a network that runs, with its text side and its rule."""

import logging
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import torch

from weights.errors import CheckpointError
from weights.families import Family, RuleOverrides, find_family, latent_rule, resolve_rule
from weights.files.canvas_adapter import (
    AdaptedParts,
    CanvasAdapterFile,
    adapt_config,
    adapt_family,
    open_canvas_adapter,
)
from weights.files.checkpoint import Checkpoint, open_checkpoint
from weights.network.config import Block, NetworkConfig
from weights.network.gelu_transformer import GeluTransformer, build_gelu_transformer
from weights.network.interface import Network
from weights.network.linear import Placement
from weights.network.quantize import calibration_ids, quantize_network
from weights.network.tensor_reader import Parts, TensorReader
from weights.network.transformer import Transformer, build_transformer
from weights.text.chat_template import ChatTemplate
from weights.text.generation_defaults import GenerationDefaults
from weights.text.tokenizer import Tokenizer


class Quantize(StrEnum):
    """Forms of weights other than their float type; INT8 on a CPU only."""

    INT8 = "int8"


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """All of a model but its weights: what the API side needs, read in well under a second.

    family:         with the rule of this very checkpoint: its mask id and block length
    context_length: tokens of prompt and answer together, at most
    """

    name: str
    family: Family
    config: NetworkConfig
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    generation: GenerationDefaults
    context_length: int

    @property
    def vocab_size(self) -> int:
        """Rows of the output head; a tokenizer may know fewer."""
        return self.config.vocab_size


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run; the fields are those of its description."""

    network: Network
    family: Family
    config: NetworkConfig
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    generation: GenerationDefaults
    name: str
    context_length: int


def describe_model(
    path: Path,
    *,
    overrides: RuleOverrides | None = None,
    context_length: int | None = None,
    canvas_adapter: Path | None = None,
) -> ModelDescription:
    """Read everything about a model but its weights; raises CheckpointError like `load_model`."""
    adapter = None if canvas_adapter is None else open_canvas_adapter(canvas_adapter)
    return _describe(open_checkpoint(path), overrides, context_length, adapter)


def load_model(
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantize: Quantize | None = None,
    overrides: RuleOverrides | None = None,
    context_length: int | None = None,
    canvas_adapter: Path | None = None,
) -> LoadedModel:
    """Load a checkpoint.

    path:           a folder in the Hugging Face layout, or a GGUF file
    dtype:          float32, bfloat16 or float16
    quantize:       INT8 on a CPU
    overrides:      mask id and block length where the checkpoint is silent or wrong
    context_length: fewer positions than the network was made for (saves rotary tables)
    canvas_adapter: folder of an adapter made for this checkpoint

    Raises CheckpointError when the checkpoint is broken, incomplete, of an unknown family or
    contradicts itself, and ValueError for a type or a length that cannot be.
    """
    started = time.monotonic()
    placement = Placement(dtype, device)
    if quantize is not None and device.type != "cpu":
        raise ValueError(f"int8 weights run on a CPU only, got device {device}")
    checkpoint = open_checkpoint(path)
    adapter = None if canvas_adapter is None else open_canvas_adapter(canvas_adapter)
    described = _describe(checkpoint, overrides, context_length, adapter)
    family, config = described.family, described.config
    reader = TensorReader(checkpoint.tensors, family.names)
    parts = family.prepare(reader, config, checkpoint.config)
    if adapter is None:
        network = build_network(config, parts, placement)
    else:
        adapted = AdaptedParts(parts, adapter, checkpoint.tensors)
        network = build_network(config, adapted, placement)
        adapted.finish()
    reader.finish()
    if quantize is not None:
        network = quantize_network(network, calibration_ids(described.tokenizer, config))
    log.info("loaded %s (%s) in %.1f s", described.name, family.name, time.monotonic() - started)
    return LoadedModel(
        network=network,
        family=family,
        config=config,
        tokenizer=described.tokenizer,
        chat_template=described.chat_template,
        generation=described.generation,
        name=described.name,
        context_length=described.context_length,
    )


def build_network(
    config: NetworkConfig, parts: Parts, placement: Placement
) -> Transformer | GeluTransformer:
    """Build the network of a config from its parts."""
    if config.block is Block.GELU:
        return build_gelu_transformer(config, parts, placement)
    return build_transformer(config, parts, placement)


def _describe(
    checkpoint: Checkpoint,
    overrides: RuleOverrides | None,
    context_length: int | None,
    adapter: CanvasAdapterFile | None,
) -> ModelDescription:
    family = find_family(checkpoint.config)
    config = family.parse(checkpoint.config)
    if adapter is not None:
        family, config = adapt_family(family, adapter), adapt_config(config, adapter)
    elif config.latent is not None:
        family = replace(family, rule=latent_rule(config.latent))
    rule = resolve_rule(
        family,
        checkpoint.config,
        vocab_size=config.vocab_size,
        tokenizer_mask_id=_mask_id(checkpoint.tokenizer, family),
        overrides=overrides or RuleOverrides(),
    )
    _check_tokenizer(checkpoint, config)
    return ModelDescription(
        name=checkpoint.name,
        family=replace(family, rule=rule),
        config=_limited(config, context_length),
        tokenizer=checkpoint.tokenizer,
        chat_template=checkpoint.chat_template,
        generation=checkpoint.generation,
        context_length=config.max_positions if context_length is None else context_length,
    )


def _limited(config: NetworkConfig, context_length: int | None) -> NetworkConfig:
    if context_length is None:
        return config
    if not 1 <= context_length <= config.max_positions:
        raise ValueError(
            f"context_length must be within 1..{config.max_positions}, got {context_length}"
        )
    if config.rotary is None:
        # A learned table has its size on disk; it is small, and the limit is the engine's to keep.
        return config
    return replace(config, max_positions=context_length)


def _mask_id(tokenizer: Tokenizer | None, family: Family) -> int | None:
    if tokenizer is None:
        return None
    ids = (tokenizer.token_id(token) for token in family.mask_tokens)
    return next((token_id for token_id in ids if token_id is not None), None)


def _check_tokenizer(checkpoint: Checkpoint, config: NetworkConfig) -> None:
    tokenizer = checkpoint.tokenizer
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer of {checkpoint.name} has {tokenizer.vocab_size} tokens, but its "
            f"network only {config.vocab_size}"
        )
