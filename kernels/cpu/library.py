"""`NativeKernels`: the compiled CPU kernels, called with tensors.

Shapes are those of the operations that call: T rows, Hq and Hkv heads, D head size.
"""

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kernels.cpu.build import CompilerError, built_library, target_name
from kernels.dispatch import native_is_wanted
from kernels.rotary import RotaryRows

log = logging.getLogger(__name__)

# Sizes of the source: outputs of a group of packed weights, inputs side by side in it, what is
# added to a weight, and the largest head.
GROUP, DEPTH, RAISED = 32, 4, 128
MAX_HEAD_DIM = 512

_POINTER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
# Results first where there is one, then inputs, as in the source; structures go by pointer.
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "pack_int8": (_POINTER, _SIZE, _SIZE, _POINTER),
    "int8_linear": (*(_POINTER,) * 4, _SIZE),
    "rms_norm": (*(_POINTER,) * 5, *(_SIZE,) * 2, _FLOAT),
    "swiglu": (*(_POINTER,) * 2, *(_SIZE,) * 2),
    "store_kv": (*(_POINTER,) * 7, _FLOAT, _POINTER, _SIZE, _POINTER),
    "paged_attention": (*(_POINTER,) * 6, _FLOAT),
    "run_layers": (*(_POINTER, _SIZE, *(_POINTER,) * 6, _FLOAT, _FLOAT, _POINTER, _SIZE, _SIZE),),
    "summarize_logits": (_POINTER, _SIZE, _SIZE, _POINTER, _POINTER),
}


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("packed", _POINTER),
        ("scales", _POINTER),
        ("inputs", _SIZE),
        ("outputs", _SIZE),
        ("levels", _FLOAT),
    )


class _LowRank(ctypes.Structure):
    _fields_ = (("down", _POINTER), ("up", _POINTER), ("rank", _SIZE))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("qkv", "output", "gate_up", "down")),
        *((f"{name}_bias", _POINTER) for name in ("qkv", "output", "gate_up", "down")),
        ("q_norm", _POINTER),
        ("k_norm", _POINTER),
        ("feed_norm", _POINTER),
        ("following_norm", _POINTER),
        ("keys", _POINTER),
        ("values", _POINTER),
        ("low_output", _LowRank),
        ("low_down", _LowRank),
        ("head_eps", _FLOAT),
    )


class _Rotation(ctypes.Structure):
    _fields_ = (
        ("cos", _POINTER),
        ("sin", _POINTER),
        ("query_scale", _POINTER),
        ("turning", _SIZE),
        ("interleaved", _SIZE),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("starts", _POINTER),
        ("table", _POINTER),
        ("limits", _POINTER),
        ("firsts", _POINTER),
        ("window_starts", _POINTER),
        ("window_stops", _POINTER),
        ("spans", _SIZE),
        ("pages", _SIZE),
        ("page_size", _SIZE),
    )


class _Heads(ctypes.Structure):
    _fields_ = (("heads", _SIZE), ("kv_heads", _SIZE), ("dim", _SIZE))


@cache
def _heads(heads: int, kv_heads: int, dim: int) -> "ctypes._CArgObject":
    return ctypes.byref(_Heads(heads, kv_heads, dim))


class NativeMatrix:
    """Weights that the kernels have packed, and how their rows are rounded."""

    def __init__(self, packed: Tensor, scales: Tensor, *, inputs: int, levels: int) -> None:
        """Scales [out] float32: multiply the sums of integers, with the row's magnitude."""
        self.outputs = scales.shape[0]
        self._kept = (packed, scales)
        fields = (packed.data_ptr(), scales.data_ptr(), inputs, self.outputs, levels)
        self.fields = _Matrix(*fields)
        self.pointer = ctypes.byref(self.fields)


class NativeBatch:
    """A `PagedBatch` as the kernels read it, and the rotation of its rows."""

    def __init__(
        self,
        *,
        starts: Tensor,
        table: Tensor,
        slots: Tensor,
        limits: Tensor,
        firsts: Tensor | None,
        windows: tuple[Tensor | None, Tensor | None],
        page_size: int,
    ) -> None:
        """The fields of a `PagedBatch` by those names; windows: their starts and stops."""
        table = table.contiguous()
        self._kept = (starts, table, slots, limits, firsts, windows)
        self._rotary: RotaryRows | None = None
        self._rotation = ctypes.byref(_Rotation())
        self.slots = slots.data_ptr()
        self.pointer = ctypes.byref(
            _Batch(
                starts.data_ptr(),
                table.data_ptr(),
                limits.data_ptr(),
                _address(firsts),
                _address(windows[0]),
                _address(windows[1]),
                table.shape[0],
                table.shape[1],
                page_size,
            )
        )

    def rotation(self, rotary: RotaryRows | None) -> "ctypes._CArgObject":
        """The angles of the batch's rows, made once: all layers have the same."""
        if rotary is not self._rotary:
            self._rotary, self._rotation = rotary, _rotation(rotary)
        return self._rotation


def _rotation(rotary: RotaryRows | None) -> "ctypes._CArgObject":
    if rotary is None:
        return ctypes.byref(_Rotation())
    return ctypes.byref(
        _Rotation(
            rotary.cos.data_ptr(),
            rotary.sin.data_ptr(),
            _address(rotary.query_scale),
            rotary.rotary_dim,
            rotary.interleaved,
        )
    )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@dataclass(frozen=True, slots=True)
class NativeLowRank:
    """Low-rank weights beside a matrix: down [r, in], up [r, out]."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, slots=True)
class NativeLayer:
    """One layer as the kernels read it; biases [out], norms [d] and [D], the cache of the layer."""

    matrices: tuple[NativeMatrix, NativeMatrix, NativeMatrix, NativeMatrix]
    biases: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    heads: "HeadLayout"
    feed_norm: Tensor
    following_norm: Tensor
    keys: Tensor
    values: Tensor
    low_output: NativeLowRank | None
    low_down: NativeLowRank | None


class NativeLayers:
    """Layers that run in one call; matrices are qkv, output, gate_up and down."""

    def __init__(self, layers: Sequence[NativeLayer]) -> None:
        self._kept = tuple(layers)
        self.count = len(layers)
        self.heads = layers[0].heads
        self.structure = (_Layer * len(layers))(*(_layer(layer) for layer in layers))
        self.pointer = ctypes.byref(self.structure)


def _layer(layer: NativeLayer) -> _Layer:
    return _Layer(
        *(matrix.fields for matrix in layer.matrices),
        *(_address(bias) for bias in layer.biases),
        _address(layer.heads.q_norm),
        _address(layer.heads.k_norm),
        layer.feed_norm.data_ptr(),
        layer.following_norm.data_ptr(),
        layer.keys.data_ptr(),
        layer.values.data_ptr(),
        _low_rank(layer.low_output),
        _low_rank(layer.low_down),
        layer.heads.norm_eps,
    )


def _low_rank(low: NativeLowRank | None) -> _LowRank:
    if low is None:
        return _LowRank()
    return _LowRank(low.down.data_ptr(), low.up.data_ptr(), low.down.shape[0])


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Heads of a layer, the norms of its queries and keys, and what scores are multiplied by."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    norm_eps: float = 1e-6


class NativeKernels:
    """One method per operation, for contiguous float32 tensors; nothing is checked here."""

    def __init__(self, library: ctypes.CDLL) -> None:
        functions = {}
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, f"estuary_{name}")
            function.argtypes, function.restype = arguments, None
            functions[name] = function
        self._pack = functions["pack_int8"]
        self._linear = functions["int8_linear"]
        self._norm = functions["rms_norm"]
        self._swiglu = functions["swiglu"]
        self._store = functions["store_kv"]
        self._attend = functions["paged_attention"]
        self._run_layers = functions["run_layers"]
        self._summarize = functions["summarize_logits"]

    def pack(self, values: Tensor) -> Tensor:
        """Lay int8 weights [out, in] out for `linear`: [groups, in / 4, 32, 4] uint8."""
        outputs, inputs = values.shape
        packed = torch.empty(
            (-(-outputs // GROUP), -(-inputs // DEPTH), GROUP, DEPTH), dtype=torch.uint8
        )
        self._pack(values.contiguous().data_ptr(), outputs, inputs, packed.data_ptr())
        return packed

    def linear(self, x: Tensor, matrix: NativeMatrix, bias: Tensor | None) -> Tensor:
        """Product [T, out] of x [T, in], rounded row by row, and packed weights."""
        rows = x.shape[0]
        product = torch.empty((rows, matrix.outputs))
        self._linear(x.data_ptr(), matrix.pointer, _address(bias), product.data_ptr(), rows)
        return product

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Norm of every row of x [T, d]."""
        normed = torch.empty(x.shape)
        rows, size = normed.shape
        self._norm(x.data_ptr(), None, weight.data_ptr(), None, normed.data_ptr(), rows, size, eps)
        return normed

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Norm of x + residual [T, d], and the sum."""
        normed, total = torch.empty(x.shape), torch.empty(x.shape)
        rows, size = normed.shape
        self._norm(
            x.data_ptr(),
            residual.data_ptr(),
            weight.data_ptr(),
            total.data_ptr(),
            normed.data_ptr(),
            rows,
            size,
            eps,
        )
        return normed, total

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up [T, I] of gate_up [T, 2 I]."""
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        activated = torch.empty((rows, size))
        self._swiglu(gate_up.data_ptr(), activated.data_ptr(), rows, size)
        return activated

    def store_kv(
        self,
        qkv: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        rotary: RotaryRows | None,
        heads: HeadLayout,
    ) -> Tensor:
        """Write keys and values of qkv [T, Hq + 2 Hkv, D] into their slots; queries [T, Hq, D]."""
        rows = qkv.shape[0]
        queries = torch.empty((rows, heads.num_heads, heads.head_dim))
        self._store(
            qkv.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            slots.data_ptr(),
            _rotation(rotary),
            _address(heads.q_norm),
            _address(heads.k_norm),
            heads.norm_eps,
            queries.data_ptr(),
            rows,
            _heads(heads.num_heads, heads.num_kv_heads, heads.head_dim),
        )
        return queries

    def paged_attention(
        self, q: Tensor, keys: Tensor, values: Tensor, batch: NativeBatch, scale: float
    ) -> Tensor:
        """What every row of q [T, Hq, D] reads from the entries it sees."""
        output = torch.empty(q.shape)
        self._attend(
            q.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            output.data_ptr(),
            batch.pointer,
            _heads(q.shape[1], keys.shape[2], q.shape[2]),
            scale,
        )
        return output

    def run_layers_(
        self,
        layers: NativeLayers,
        x: Tensor,
        residual: Tensor,
        batch: NativeBatch,
        rotary: RotaryRows | None,
        eps: float,
        low_rows: Tensor | None,
    ) -> None:
        """Run layers over x [T, d], what the first one reads, and the residual; both change."""
        heads = layers.heads
        self._run_layers(
            layers.pointer,
            layers.count,
            x.data_ptr(),
            residual.data_ptr(),
            batch.slots,
            batch.rotation(rotary),
            batch.pointer,
            _heads(heads.num_heads, heads.num_kv_heads, heads.head_dim),
            heads.scale,
            eps,
            _address(low_rows),
            0 if low_rows is None else low_rows.shape[0],
            x.shape[0],
        )

    def summarize_logits(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """What rows of logits [r, V] say, as numbers [r, 4], and their argmax [r] int64.

        The numbers: largest logit, sum of exp(logit - largest), that sum weighted by the gaps
        below the largest, second largest logit. NaN where a logit is no number.
        """
        rows, vocab = logits.shape
        numbers, argmax = torch.empty((rows, 4)), torch.empty(rows, dtype=torch.int64)
        self._summarize(logits.data_ptr(), rows, vocab, numbers.data_ptr(), argmax.data_ptr())
        return numbers, argmax


def unpack(packed: Tensor, *, outputs: int, inputs: int) -> Tensor:
    """The int8 weights [out, in] that `NativeKernels.pack` laid out."""
    groups, steps, lanes, depth = packed.shape
    rows = packed.permute(0, 2, 1, 3).reshape(groups * lanes, steps * depth)
    return (rows[:outputs, :inputs].short() - RAISED).to(torch.int8)


@cache
def native_kernels() -> NativeKernels | None:
    """The compiled kernels of this machine; None where they cannot be had, which is logged."""
    if not native_is_wanted():
        return None
    try:
        kernels = NativeKernels(ctypes.CDLL(str(built_library())))
    except (CompilerError, OSError) as error:
        log.warning("no CPU kernels of our own: %s; PyTorch's operations are slower", error)
        return None
    log.info("CPU kernels for %s", target_name())
    return kernels


def runs_native(*tensors: Tensor) -> NativeKernels | None:
    """The compiled kernels when they can take these: contiguous float32, no gradient wanted."""
    kernels = native_kernels()
    if kernels is None:
        return None
    for tensor in tensors:
        if (
            tensor.dtype != torch.float32
            or tensor.requires_grad
            or tensor.device.type != "cpu"
            or not tensor.is_contiguous()
        ):
            return None
    return kernels
