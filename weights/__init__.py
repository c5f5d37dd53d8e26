"""Checkpoints, model families, networks, tokenizer, chat template, the embedded default model."""

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
from weights.load import (
    LoadedModel,
    ModelDescription,
    Quantize,
    build_network,
    describe_model,
    load_model,
)
from weights.network.config import NetworkConfig
from weights.network.interface import Network, NetworkInput
from weights.network.linear import Placement
from weights.text.chat_template import ChatTemplate
from weights.text.detokenizer import Detokenizer
from weights.text.generation_defaults import GenerationDefaults
from weights.text.tokenizer import Tokenizer

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
