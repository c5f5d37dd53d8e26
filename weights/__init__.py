"""Checkpoints, model families, networks, tokenizer, chat template, the embedded default model."""

from weights.chat_template import ChatTemplate
from weights.detokenizer import Detokenizer
from weights.errors import CheckpointError, FetchError, TemplateError
from weights.families import (
    FAMILIES,
    AcceptanceDefaults,
    DraftLimit,
    Family,
    FamilyRule,
    Grid,
    Order,
    RuleOverrides,
    Settle,
    Speaks,
)
from weights.generation_defaults import GenerationDefaults
from weights.linear import Placement
from weights.load import (
    LoadedModel,
    ModelDescription,
    Quantize,
    build_network,
    describe_model,
    load_model,
)
from weights.network import Network, NetworkInput
from weights.network_config import NetworkConfig
from weights.tokenizer import Tokenizer

__all__ = [
    "FAMILIES",
    "AcceptanceDefaults",
    "ChatTemplate",
    "CheckpointError",
    "Detokenizer",
    "DraftLimit",
    "Family",
    "FamilyRule",
    "FetchError",
    "GenerationDefaults",
    "Grid",
    "LoadedModel",
    "ModelDescription",
    "Network",
    "NetworkConfig",
    "NetworkInput",
    "Order",
    "Placement",
    "Quantize",
    "RuleOverrides",
    "Settle",
    "Speaks",
    "TemplateError",
    "Tokenizer",
    "build_network",
    "describe_model",
    "load_model",
]
