"""`QuantizedStore`: a quantised checkpoint under the names and shapes of the unquantised one."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from weights.config_fields import ConfigFields
from weights.network.tensor_reader import TensorStore
from weights.quantized.compressed_tensors import find_compressed_tensors
from weights.quantized.integer_groups import find_awq, find_gptq
from weights.quantized.layout import Found
from weights.quantized.small_floats import find_fp8, find_modelopt
from weights.quantized.torchao import find_torchao
from weights.scaled_values import ScaledValues

_METHODS: dict[str, Callable[[TensorStore, ConfigFields], Found]] = {
    "compressed-tensors": find_compressed_tensors,
    "gptq": find_gptq,
    "awq": find_awq,
    "fp8": find_fp8,
    "modelopt": find_modelopt,
    "torchao": find_torchao,
}


class QuantizedStore:
    """Named tensors, of which some are put together from several stored ones."""

    def __init__(self, store: TensorStore, found: Found) -> None:
        self._store = store
        self._tensors = found.tensors
        self._plain = [name for name in store.names() if name not in found.used]

    def names(self) -> Iterable[str]:
        """All names."""
        return [*self._plain, *self._tensors]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor as it is computed with."""
        quantized = self._tensors.get(name)
        return self._store.shape(name) if quantized is None else quantized.shape()

    def tensor(self, name: str) -> Tensor:
        """Read a tensor; one that is quantised, as float32."""
        quantized = self._tensors.get(name)
        return self._store.tensor(name) if quantized is None else quantized.read().dense()

    def scaled(self, name: str) -> ScaledValues | None:
        """Read the values and scales of a quantised tensor; None for any other."""
        quantized = self._tensors.get(name)
        return None if quantized is None else quantized.read()

    def metadata(self) -> Mapping[str, str]:
        """What the files say of themselves."""
        return self._store.metadata()


def open_quantized(store: TensorStore, config: ConfigFields) -> TensorStore:
    """Look behind the `quantization_config` of a config.json; without one, the store itself.

    Raises CheckpointError for a method that is not known, and for variants of known ones that
    cannot be read.
    """
    fields = config.section("quantization_config")
    if fields is None:
        return store
    find = _METHODS.get(fields.text("quant_method"))
    if find is None:
        raise fields.refuse("quant_method", f"but only {', '.join(_METHODS)} are known")
    return QuantizedStore(store, find(store, fields))
