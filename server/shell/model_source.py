"""Where the model comes from: a path, the hub, or the embedded default; what the engine is told."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sampler import EngineConfig
from server.settings import Settings, SettingsError
from weights import ChatTemplate, FamilyRule, TemplateError, Tokenizer, describe_model
from weights.errors import CheckpointError
from weights.families import RuleOverrides
from weights.files.default_model import DEFAULT_CANVAS_ADAPTER, fetch_default_model
from weights.files.hub import fetch_repo, is_repo_id

DEFAULT_MODEL_NAME = "SmolLM2-135M-Instruct"


@dataclass(frozen=True, slots=True)
class TextSide:
    """What the API process needs of a model."""

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    rule: FamilyRule | None = None


def find_model(settings: Settings) -> Path:
    """The path of the model, fetched if need be; raises FetchError or SettingsError."""
    if settings.model is None:
        return fetch_default_model(settings.cache_dir)
    if is_repo_id(settings.model):
        return fetch_repo(
            settings.model, cache_dir=settings.cache_dir / "hub", revision=settings.revision
        )
    path = Path(settings.model).expanduser()
    if not path.exists():
        raise SettingsError(f"model: {settings.model} is neither a path nor a hub id")
    return path


def model_name(settings: Settings, path: Path) -> str:
    """What clients call the model when no name is set: the hub id, or the path's last part."""
    if settings.model is None:
        return DEFAULT_MODEL_NAME
    if is_repo_id(settings.model):
        return settings.model
    return path.resolve().name.removesuffix(".gguf")


def find_canvas_adapter(settings: Settings) -> Path | None:
    """The folder of the model's canvas adapter; the default model brings its own."""
    if settings.canvas_adapter is None:
        own = settings.model is None and DEFAULT_CANVAS_ADAPTER.is_dir()
        return DEFAULT_CANVAS_ADAPTER if own else None
    return None if settings.canvas_adapter == "none" else Path(settings.canvas_adapter)


def read_text_side(path: Path, settings: Settings) -> TextSide:
    """Tokenizer and chat template of a model.

    Raises CheckpointError for a broken model and SettingsError for a broken template file.
    """
    overrides = RuleOverrides(
        mask_token_id=settings.mask_token_id, block_length=settings.block_length
    )
    described = describe_model(
        path, overrides=overrides, canvas_adapter=find_canvas_adapter(settings)
    )
    if described.tokenizer is None:
        raise CheckpointError(f"{path} has no tokenizer")
    template = described.chat_template
    if settings.chat_template is not None:
        template = _read_template(settings.chat_template, described.tokenizer)
    return TextSide(described.tokenizer, template, described.family.rule)


def _read_template(path: Path, tokenizer: Tokenizer) -> ChatTemplate:
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"chat_template: {path} cannot be read: {error}") from error
    special = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    known = {name: token for name, token in special.items() if token is not None}
    try:
        return ChatTemplate(source, special_tokens=known)
    except TemplateError as error:
        raise SettingsError(f"chat_template: {error}") from error


def engine_config(settings: Settings, path: Path) -> EngineConfig:
    """What the engine is told; raises ValueError for sizes that cannot be."""
    adapter = find_canvas_adapter(settings)
    return EngineConfig(
        model=str(path),
        dtype=settings.dtype,
        quantization=_quantization(settings),
        device=settings.device,
        page_size=settings.page_size,
        max_sequences=settings.max_num_seqs,
        max_rows=settings.max_num_batched_tokens,
        max_context=settings.max_model_len,
        mask_token_id=settings.mask_token_id,
        block_length=settings.block_length,
        canvas_adapter=None if adapter is None else str(adapter),
        cache_bytes=settings.kv_cache_memory,
        max_waiting=settings.max_queued_requests,
        prefix_caching=settings.enable_prefix_caching,
        cuda_graphs=settings.cuda_graphs,
        num_threads=settings.num_threads,
        seed=settings.seed,
    )


def _quantization(settings: Settings) -> str | None:
    if settings.quantization is not None:
        return None if settings.quantization == "none" else settings.quantization
    on_cpu = settings.device == "cpu" or not torch.cuda.is_available()
    # float32 was asked for by name: that is the reference path.
    return "int8" if settings.model is None and on_cpu and settings.dtype is None else None
