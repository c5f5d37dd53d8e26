"""Canvas adapters: a folder of small weights that gives a left-to-right base a latent canvas.

    config.json        {"base": {"family", "fingerprint"}, "latent": {...}}
    model.safetensors  the tensors of `weights.network.latent`

The base itself is untouched: only rows that hold latents see the adapter. An adapter belongs to
one base, told by a fingerprint of the base's norms and of all its shapes, which are the same in
whatever form the matrices are stored.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from weights.config_fields import ConfigFields, read_json_object
from weights.errors import CheckpointError
from weights.families import Family
from weights.families.evo import latent_rule
from weights.files.safetensors_store import open_folder
from weights.network.config import NetworkConfig
from weights.network.latent import LATENT_TABLE
from weights.network.latent_config import LatentConfig, parse_latent
from weights.network.tensor_reader import Parts, TensorNames, TensorReader, TensorStore

_PREFIX = "latent."


@dataclass(frozen=True, slots=True)
class CanvasAdapterFile:
    """An adapter on disk."""

    name: str
    latent: LatentConfig
    base_family: str
    base_fingerprint: str
    tensors: TensorStore


def open_canvas_adapter(folder: Path) -> CanvasAdapterFile:
    """Open an adapter's folder; raises CheckpointError when it is missing or broken."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no canvas adapter: it has no config.json")
    fields = ConfigFields(read_json_object(folder / "config.json"), str(folder / "config.json"))
    base = fields.section("base")
    if base is None:
        raise CheckpointError(f"{fields.where} does not say which base the adapter belongs to")
    return CanvasAdapterFile(
        name=folder.resolve().name,
        latent=parse_latent(fields),
        base_family=base.text("family"),
        base_fingerprint=base.text("fingerprint"),
        tensors=open_folder(folder),
    )


def fingerprint(tensors: TensorStore) -> str:
    """sha256 over names and shapes of all tensors, and over the values of all vectors."""
    digest = hashlib.sha256()
    for name in sorted(tensors.names()):
        shape = tensors.shape(name)
        digest.update(f"{name} {list(shape)}\n".encode())
        if len(shape) == 1:
            digest.update(tensors.tensor(name).to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def adapt_config(config: NetworkConfig, adapter: CanvasAdapterFile) -> NetworkConfig:
    """The base's config with the adapter's latents."""
    return replace(config, latent=adapter.latent)


def adapt_family(family: Family, adapter: CanvasAdapterFile) -> Family:
    """The base's family, decoding by latent canvas too.

    Raises CheckpointError when the base is of another family or has a canvas of its own.
    """
    if family.name != adapter.base_family or family.rule.drafts:
        raise CheckpointError(
            f"the canvas adapter {adapter.name} is for a {adapter.base_family} base, not for "
            f"{family.name}"
        )
    return replace(family, rule=latent_rule(adapter.latent))


class AdaptedParts:
    """The parts of a base and of its adapter, as one."""

    def __init__(self, base: Parts, adapter: CanvasAdapterFile, tensors: TensorStore) -> None:
        """Raises CheckpointError when `tensors`, the base's own, are not what it was made for."""
        if fingerprint(tensors) != adapter.base_fingerprint:
            raise CheckpointError(
                f"the canvas adapter {adapter.name} was made for another base: the fingerprint of "
                "this model's weights is not the one it records"
            )
        self._base = base
        self._reader = TensorReader(adapter.tensors, TensorNames(LATENT_TABLE))

    def has(self, part: str, layer: int | None = None, expert: int | None = None) -> bool:
        """Whether either has the part."""
        return self._of(part).has(part, layer, expert)

    def take(
        self,
        part: str,
        shape: tuple[int, ...],
        layer: int | None = None,
        expert: int | None = None,
    ) -> Tensor:
        """Read a part from whichever has it."""
        return self._of(part).take(part, shape, layer, expert)

    def finish(self) -> None:
        """Raise CheckpointError when the adapter holds tensors that nobody took."""
        self._reader.finish()

    def _of(self, part: str) -> Parts:
        return self._reader if part.startswith(_PREFIX) else self._base
