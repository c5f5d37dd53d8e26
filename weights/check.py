"""`check_model`: what a checkpoint is and needs, from its headers alone: no weight is read."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels import page_bytes
from weights.errors import CheckpointError
from weights.families import RuleOverrides
from weights.files.checkpoint import Checkpoint, open_checkpoint
from weights.load import ModelDescription, build_network, describe_model
from weights.network.config import NetworkConfig
from weights.network.linear import Placement
from weights.network.tensor_reader import Parts, TensorReader, TensorStore
from weights.quantized import QuantizedStore
from weights.scaled_values import ScaledValues

_CONTEXTS = (4_096, 32_768, 131_072)
_DTYPES = (torch.bfloat16, torch.float32)
_META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """What is known of a checkpoint before it is loaded.

    form:           what lies there: "safetensors", "safetensors (gptq)" or "GGUF"
    family, modes:  how it would be served; None and empty where that is not known
    parameters:     numbers of all its tensors, unpacked
    stored_bytes:   of its files
    token_bytes:    of one token in a bfloat16 cache, over all layers
    context_length: tokens of prompt and answer together, at most
    problem:        why it cannot be served, and what would have to change; None where it can
    """

    name: str
    form: str
    stored_bytes: int
    family: str | None = None
    modes: tuple[str, ...] = ()
    parameters: int = 0
    token_bytes: int = 0
    context_length: int = 0
    has_tokenizer: bool = False
    problem: str | None = None

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Memory of all weights in a float type, none of them packed."""
        return self.parameters * dtype.itemsize

    def contexts(self) -> tuple[int, ...]:
        """A few lengths of context up to its own."""
        return (*(c for c in _CONTEXTS if c < self.context_length), self.context_length)


def check_model(path: Path, *, overrides: RuleOverrides | None = None) -> ModelCheck:
    """Look at a checkpoint; never raises CheckpointError, but says it.

    overrides: mask id and block length where the checkpoint is silent or wrong
    """
    stored = _stored_bytes(path)
    try:
        checkpoint = open_checkpoint(path)
        form = _form(path, checkpoint)
    except CheckpointError as error:
        return ModelCheck(path.name, _bare_form(path), stored, problem=str(error))
    parameters = 0
    try:
        parameters = _num_parameters(checkpoint.tensors)
        described = describe_model(path, overrides=overrides)
        _build_without_weights(checkpoint, described)
    except CheckpointError as error:
        return ModelCheck(checkpoint.name, form, stored, parameters=parameters, problem=str(error))
    has_tokenizer = described.tokenizer is not None
    return ModelCheck(
        name=checkpoint.name,
        form=form,
        stored_bytes=stored,
        family=described.family.name,
        modes=described.family.rule.modes,
        parameters=parameters,
        token_bytes=_token_bytes(described.config),
        context_length=described.context_length,
        has_tokenizer=has_tokenizer,
        problem=None if has_tokenizer else "it has no tokenizer.json, which serving needs",
    )


def report(check: ModelCheck) -> list[str]:
    """The check in lines for people."""
    lines = [f"{check.name}: {check.form}, {_size(check.stored_bytes)} on disk"]
    if check.family is not None:
        lines.append(f"family: {check.family}; decodes by {', '.join(check.modes)}")
    if check.parameters:
        sizes = [f"{_size(check.weight_bytes(d))} in {_name(d)}" for d in _DTYPES]
        lines.append(f"weights: {check.parameters:,} parameters, {', '.join(sizes)}")
    if check.token_bytes:
        lines.append(f"context: {check.context_length} tokens at most")
        lines.extend(_memory_at(check, length) for length in check.contexts())
    verdict = "can be served" if check.problem is None else f"cannot be served: {check.problem}"
    return [*lines, verdict]


def _memory_at(check: ModelCheck, length: int) -> str:
    cache = length * check.token_bytes
    total = check.weight_bytes(torch.bfloat16) + cache
    return f"  memory at {length} tokens: {_size(total)} in bfloat16, {_size(cache)} of it cache"


class _Shapes:
    """A store whose tensors have shapes, but no values."""

    def __init__(self, store: TensorStore) -> None:
        self._store = store

    def names(self) -> Iterable[str]:
        return self._store.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._store.shape(name)

    def tensor(self, name: str) -> Tensor:
        return torch.empty(self._store.shape(name), dtype=torch.float32, device=_META)

    def scaled(self, name: str) -> ScaledValues | None:  # noqa: ARG002
        return None

    def metadata(self) -> Mapping[str, str]:
        return self._store.metadata()


class _UntiedParts:
    """Parts of shapes: a tied head that stands in the file cannot be compared with the table."""

    def __init__(self, parts: Parts, config: NetworkConfig) -> None:
        self._parts = parts
        self._config = config

    def has(self, part: str, layer: int | None = None, expert: int | None = None) -> bool:
        there = self._parts.has(part, layer, expert)
        if there and part == "head.weight" and self._config.tie_head:
            self._parts.take(part, (self._config.vocab_size, self._config.hidden_size))
            return False
        return there

    def take(
        self,
        part: str,
        shape: tuple[int, ...],
        layer: int | None = None,
        expert: int | None = None,
    ) -> Tensor:
        return self._parts.take(part, shape, layer, expert)

    def scaled(
        self,
        part: str,
        shape: tuple[int, ...],
        layer: int | None = None,
        expert: int | None = None,
    ) -> ScaledValues | None:
        return self._parts.scaled(part, shape, layer, expert)


def _build_without_weights(checkpoint: Checkpoint, described: ModelDescription) -> None:
    """Build the network of shapes alone; raises CheckpointError for what does not fit."""
    family, config = described.family, described.config
    if family.names.transposed and isinstance(checkpoint.tensors, QuantizedStore):
        raise CheckpointError(
            f"quantised checkpoints of the family {family.name} are not supported"
        )
    reader = TensorReader(_Shapes(checkpoint.tensors), family.names)
    with _META:
        parts = _UntiedParts(family.prepare(reader, config, checkpoint.config), config)
        build_network(config, parts, Placement(torch.bfloat16, _META))
    reader.finish()


def _num_parameters(store: TensorStore) -> int:
    return sum(math.prod(store.shape(name)) for name in store.names())


def _token_bytes(config: NetworkConfig) -> int:
    return page_bytes(
        num_layers=config.num_layers,
        page_size=1,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=torch.bfloat16,
    )


def _form(path: Path, checkpoint: Checkpoint) -> str:
    section = checkpoint.config.section("quantization_config")
    form = _bare_form(path)
    return form if section is None else f"{form} ({section.text('quant_method')})"


def _bare_form(path: Path) -> str:
    if path.is_dir():
        if any(path.glob("*.safetensors")):
            return "safetensors"
        return "GGUF" if any(path.glob("*.gguf")) else "a folder without weights"
    if not path.exists():
        return "nothing"
    return "GGUF" if path.suffix == ".gguf" else "a file"


def _stored_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    files = [file for file in path.glob("*") if file.suffix in (".safetensors", ".gguf")]
    return sum(file.stat().st_size for file in files)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _size(num_bytes: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} KiB"
