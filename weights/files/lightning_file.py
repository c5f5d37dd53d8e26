"""A Lightning `.ckpt` read without running any of it: tensors and plain containers only.

The file is a zip of raw tensor memory and one pickle. A pickle names functions to call; here all
but the two that build tensors become inert placeholders, so that configs and tokenizers of
classes we do not have (or that mean harm) do nothing.
From: the format of torch.save since PyTorch 1.6.
"""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from weights.errors import CheckpointError

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Placeholder:
    """Stands for an object whose class is not known; keeps its state and does nothing."""

    def __new__(cls, *_: object, **__: object) -> "Placeholder":
        """Take any arguments; unpickling may never call `__init__`."""
        made = super().__new__(cls)
        made.state = None
        made.items = {}
        return made

    def __init__(self, *_: object, **__: object) -> None:
        self.state: object
        self.items: dict[object, object]

    def __setstate__(self, state: object) -> None:
        """Keep the state."""
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        """Keep an entry of what was a mapping."""
        self.items[key] = value

    def append(self, value: object) -> None:
        """Let an entry of what was a sequence go."""

    def extend(self, values: object) -> None:
        """Let entries of what was a sequence go."""

    def add(self, value: object) -> None:
        """Let an entry of what was a set go."""


def read_lightning_file(path: Path) -> dict[object, object]:
    """Read the outermost dictionary of a `.ckpt`.

    Raises CheckpointError when the file is no such zip, is broken, or holds no dictionary.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickled) != 1:
                raise CheckpointError(f"{path} is no checkpoint written by torch.save")
            reader = _Reader(archive, pickled[0])
            content = reader.load()
    except CheckpointError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no dictionary")
    return content


def plain_config(value: object) -> object:
    """Unwrap containers of a config library kept as placeholders: what they hold, or None."""
    if isinstance(value, Placeholder):
        state = value.state
        if isinstance(state, dict):
            for name in ("_content", "_val"):
                if name in state:
                    return plain_config(state[name])
        return {key: plain_config(item) for key, item in value.items.items()} or None
    if isinstance(value, dict):
        return {key: plain_config(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_config(item) for item in value]
    return value


class _Reader(pickle.Unpickler):
    """Builds tensors from the archive's memory; every other global is a placeholder."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        super().__init__(io.BytesIO(archive.read(name)))
        self._archive = archive
        self._folder = name.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        """Look a global up: never anywhere but here."""
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in _STORAGES:
            return _storage_kind(name)
        return Placeholder

    def persistent_load(self, reference: object) -> Tensor:
        """Read the memory of a storage [n]."""
        if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
            raise pickle.UnpicklingError("it refers to something that is no tensor memory")
        _, kind, key, _, count = reference[:5]
        if not isinstance(kind, _Storage):
            raise pickle.UnpicklingError("it holds tensor memory of an unknown type")
        raw = self._archive.read(f"{self._folder}data/{key}")
        if len(raw) != count * kind.dtype.itemsize:
            raise pickle.UnpicklingError(f"tensor memory {key} has the wrong size")
        if not raw:
            return torch.zeros(0, dtype=kind.dtype)
        return torch.frombuffer(bytearray(raw), dtype=kind.dtype)


class _Storage:
    """The element type of a piece of tensor memory."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, *_: object) -> None:
        """Be callable, as the class it stands for was."""


def _storage_kind(name: str) -> _Storage:
    return _Storage(_STORAGES[name])


def _rebuild_tensor(
    storage: Tensor, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> Tensor:
    # PyTorch checks that the view stays inside the memory.
    return torch.as_strided(storage, shape, strides, offset).clone()


def _rebuild_parameter(tensor: Tensor, *_: object) -> Tensor:
    return tensor
