"""The safetensors files of a checkpoint folder as one store of named tensors."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from weights.config_fields import ConfigFields, read_json_object
from weights.errors import CheckpointError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class SafetensorsStore:
    """Tensors of one or more safetensors files; only headers are read before a tensor is."""

    def __init__(
        self, files: Mapping[str, Path], *, expected: frozenset[str] | None = None
    ) -> None:
        """Open files; the key is a prefix put before the names of a file's tensors.

        expected: names an index promises, or None without an index. Raises CheckpointError when
        a file is broken, two hold the same name, or one of the expected is in none.
        """
        self._places: dict[str, tuple[Path, str]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for key, path in files.items():
            self._add(path, prefix=key if key.endswith("/") else "")
        missing = sorted((expected or frozenset()) - self._places.keys())
        if missing:
            raise CheckpointError(
                f"tensor {missing[0]} stands in the index, but in none of its files",
                tensor=missing[0],
            )

    def names(self) -> Iterable[str]:
        """All names."""
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._shapes[name]

    def tensor(self, name: str) -> Tensor:
        """Read a tensor."""
        path, stored = self._places[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(stored)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"tensor {name} cannot be read from {path}: {error}") from error
        return tensor

    def _add(self, path: Path, *, prefix: str) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                for stored in file.keys():  # noqa: SIM118 -- not a dict
                    name = prefix + stored
                    if name in self._places:
                        raise CheckpointError(
                            f"tensor {name} stands in both {self._places[name][0]} and {path}",
                            tensor=name,
                        )
                    self._places[name] = (path, stored)
                    self._shapes[name] = tuple(file.get_slice(stored).get_shape())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is no readable safetensors file: {error}") from error


def open_folder(folder: Path, *, adapters: tuple[str, ...] = ()) -> SafetensorsStore:
    """Open the weights of a folder: its index's files, `model.safetensors`, or all it has.

    adapters: subfolders whose `adapter_model.safetensors` belongs to the model; its tensors'
    names begin with the subfolder's. Raises CheckpointError when there are no weights, or only
    pickled ones.
    """
    index = folder / _INDEX
    expected = None
    if index.is_file():
        expected, paths = _read_index(index)
    elif (folder / _SINGLE).is_file():
        paths = [folder / _SINGLE]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise CheckpointError(_why_empty(folder))
    files = {path.name: path for path in paths}
    for adapter in adapters:
        path = folder / adapter / "adapter_model.safetensors"
        if path.is_file():
            files[f"{adapter}/"] = path
    return SafetensorsStore(files, expected=expected)


def _read_index(index: Path) -> tuple[frozenset[str], list[Path]]:
    fields = ConfigFields(read_json_object(index), str(index))
    places = fields.section("weight_map")
    if places is None:
        raise CheckpointError(f"{index} has no field weight_map")
    names = sorted({places.text(name) for name in places.values})
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index} names the file {name}, which is outside its folder")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index} names the file {name}, which is missing")
    return frozenset(places.values), [index.parent / name for name in names]


def _why_empty(folder: Path) -> str:
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if pickled:
        return (
            f"{folder} holds only pickled weights ({pickled[0]}), which can run code when they "
            "are opened; convert them to safetensors first"
        )
    return f"{folder} holds no safetensors file"
