"""Exact products of int8 rows and int8 weights on a CPU, and which of them run on this one.

A *format* says what is computed: how many levels a row is rounded to. It follows from the CPU's
instructions by the table below, or is pinned, so that two starts agree. A *product* says how: all
products of a format give the same bits at any number of rows, which is tried at the start, so
the clock may choose among them without anyone's seeing it in a result.

W8A8 rows hold 8 bits. Older CPUs add pairs of products in 16 bits, which saturate; W8A7 rows hold
7 bits there, which cannot: 2 * 127 * 127 < 2**15 around 64, and 2 * 255 * 63 < 2**15 in our own
kernels, whose weights are unsigned.

Shapes: T rows, `in` and `out` features.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import torch
from torch import Tensor

from kernels.cpu import NativeMatrix, cpu_features, native_kernels
from kernels.cpu.features import is_x86

log = logging.getLogger(__name__)

# A row of zeros must not divide by zero; far below any magnitude that matters.
SMALLEST_PEAK = 1e-30


class LinearFormat(StrEnum):
    """What an int8 product computes: bits of weights and of activations (rows)."""

    W8A8 = "w8a8"
    W8A7 = "w8a7"

    @property
    def levels(self) -> int:
        """The largest integer of a row."""
        return 127 if self is LinearFormat.W8A8 else 63


# The first line whose features this CPU has, any one line's all, says the format.
_FORMATS: tuple[tuple[frozenset[str], LinearFormat], ...] = (
    (frozenset({"amx_int8"}), LinearFormat.W8A8),
    (frozenset({"avx512_vnni"}), LinearFormat.W8A8),
    (frozenset({"avx_vnni"}), LinearFormat.W8A8),
    (frozenset(), LinearFormat.W8A7),
)


def default_format() -> LinearFormat:
    """The format that the table has for this CPU; other processors than x86 multiply 8 bits."""
    if not is_x86():
        return LinearFormat.W8A8
    features = cpu_features()
    return next(found for needed, found in _FORMATS if needed <= features)


@dataclass(frozen=True, slots=True)
class Int8Product:
    """One way to multiply.

    pack:     weights [out, in] int8 in the form that `multiply` reads
    multiply: x [T, in] float32, packed weights, scales [out] float32, levels -> [T, out] float32,
              which is (rows as integers . weights) * scales * the row's largest magnitude
    """

    name: str
    pack: Callable[[Tensor], Tensor]
    multiply: Callable[[Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class ProductChoice:
    """The products of a format by number of rows: each up to its bound, the last for all more."""

    format: LinearFormat
    products: tuple[Int8Product, ...]
    bounds: tuple[int, ...]

    def index(self, rows: int) -> int:
        """Which product multiplies so many rows."""
        return next(
            (index for index, bound in enumerate(self.bounds) if rows <= bound), len(self.bounds)
        )

    def describe(self) -> str:
        """The choice in words, such as `native up to 64 rows, onednn_s8 above`."""
        parts = [
            f"{product.name} up to {bound} rows"
            for product, bound in zip(self.products, self.bounds, strict=False)
        ]
        last = self.products[-1].name
        return ", ".join([*parts, f"{last} above"]) if parts else last


def quantized_rows(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Rows x [T, in] as whole numbers in float32, and the magnitude [T, 1] each was divided by."""
    peaks = x.abs().amax(1, True).clamp_min_(SMALLEST_PEAK)
    return x.div(peaks).mul_(levels).round_(), peaks


def _native_pack(values: Tensor) -> Tensor:
    kernels = native_kernels()
    if kernels is None:
        raise ValueError("there are no compiled CPU kernels here")
    return kernels.pack(values)


def _native_multiply(x: Tensor, packed: Tensor, scales: Tensor, levels: int) -> Tensor:
    kernels = native_kernels()
    if kernels is None:
        raise ValueError("there are no compiled CPU kernels here")
    matrix = NativeMatrix(packed, scales, inputs=x.shape[1], levels=levels)
    return kernels.linear(x.contiguous(), matrix, None)


def _onednn_pack(values: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(values, None)
    return packed


def _onednn(rows: Tensor, zero: int, packed: Tensor, scales: Tensor) -> Tensor:
    zeros = torch.zeros(scales.shape[0], dtype=torch.int64)
    product: Tensor = torch.ops.onednn.qlinear_pointwise.default(
        rows, 1.0, zero, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


def _onednn_signed(x: Tensor, packed: Tensor, scales: Tensor, levels: int) -> Tensor:
    rows, peaks = quantized_rows(x, levels)
    return _onednn(rows.to(torch.int8), 0, packed, scales).mul_(peaks)


def _onednn_unsigned(x: Tensor, packed: Tensor, scales: Tensor, levels: int) -> Tensor:
    rows, peaks = quantized_rows(x, levels)
    return _onednn(rows.add_(levels + 1).to(torch.uint8), levels + 1, packed, scales).mul_(peaks)


def _int_mm_pack(values: Tensor) -> Tensor:
    return values.contiguous()


def _int_mm(x: Tensor, packed: Tensor, scales: Tensor, levels: int) -> Tensor:
    rows, peaks = quantized_rows(x, levels)
    return torch._int_mm(rows.to(torch.int8), packed.t()).float().mul_(scales).mul_(peaks)


def _float64(x: Tensor, packed: Tensor, scales: Tensor, levels: int) -> Tensor:
    """Slow, and exact on every processor: float64 holds all the sums."""
    rows, peaks = quantized_rows(x, levels)
    return (rows.double() @ packed.double().t()).float().mul_(scales).mul_(peaks)


NATIVE = Int8Product("native", _native_pack, _native_multiply)
ONEDNN_SIGNED = Int8Product("onednn_s8", _onednn_pack, _onednn_signed)
ONEDNN_UNSIGNED = Int8Product("onednn_u8", _onednn_pack, _onednn_unsigned)
INT_MM = Int8Product("int_mm", _int_mm_pack, _int_mm)
FLOAT64 = Int8Product("float64", _int_mm_pack, _float64)
PRODUCTS = (NATIVE, ONEDNN_UNSIGNED, ONEDNN_SIGNED, INT_MM)

# Trials of exactness: sizes that leave ends in every direction, and row counts at which
# implementations change their ways.
_TRIAL_SHAPES = ((70, 63), (96, 256))
_TRIAL_ROWS = (1, 2, 5, 16, 33, 64)
# Trials of speed: a matrix of the default model, and row counts to decide between.
_TIMED_SHAPE = (1536, 576)
_TIMED_ROWS = (1, 4, 16, 64, 256)
# Least times count, so that a busy moment misleads nobody: the cheaper, the more of them.
_ROUNDS = (15, 15, 9, 5, 3)
# Products stand in order of preference; a later one has to be this much faster.
_CLEARLY = 1.5
# A candidate this much slower than the best at few rows is not tried at many: some fall to
# reference loops that take a thousand times as long.
_HOPELESS = 8.0
# A second copy of all weights, in another form, has to be worth its memory.
_WORTH_A_COPY = 1.5


@cache
def chosen_products(number_format: LinearFormat) -> ProductChoice:
    """The products that run on this CPU, tried for exactness and then timed, in milliseconds."""
    started_s = time.monotonic()
    with _one_thread():
        exact = [product for product in _candidates() if is_exact(product, number_format)]
        times = _timed(exact or [FLOAT64], number_format)
    choice = _choose(times, number_format)
    log.info(
        "int8 products %s: %s (of %s; chosen in %.0f ms)",
        number_format,
        choice.describe(),
        ", ".join(product.name for product in exact) or "none exact",
        1e3 * (time.monotonic() - started_s),
    )
    return choice


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run on one thread: on a busy machine several wait for each other, and times say nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _candidates() -> tuple[Int8Product, ...]:
    return PRODUCTS if native_kernels() is not None else PRODUCTS[1:]


def is_exact(product: Int8Product, number_format: LinearFormat) -> bool:
    """Whether a product gives the defined bits, at the largest sums, for every number of rows."""
    return all(
        _agrees(product, number_format, outputs, inputs) for outputs, inputs in _TRIAL_SHAPES
    )


def _agrees(product: Int8Product, number_format: LinearFormat, outputs: int, inputs: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
    values[: outputs // 3] = 127
    values[outputs // 3 : outputs // 2] = -127
    scales = torch.rand(outputs, generator=generator) + 0.5
    x = torch.randn((max(_TRIAL_ROWS), inputs), generator=generator)
    x[::4], x[1::4] = 1.0, -1.0
    levels = number_format.levels
    expected = _float64(x, values, scales, levels)
    try:
        packed = product.pack(values)
        return all(
            torch.equal(product.multiply(x[:rows], packed, scales, levels), expected[:rows])
            for rows in _TRIAL_ROWS
        )
    except RuntimeError:
        # PyTorch has no such product for this CPU.
        return False


def _timed(
    products: Sequence[Int8Product], number_format: LinearFormat
) -> dict[str, tuple[Int8Product, list[float]]]:
    """The least seconds of each product at each of the timed row counts, in turns."""
    values = torch.randint(-127, 128, _TIMED_SHAPE, dtype=torch.int8)
    scales = torch.ones(_TIMED_SHAPE[0])
    packed = {product.name: product.pack(values) for product in products}
    times: dict[str, tuple[Int8Product, list[float]]] = {
        product.name: (product, []) for product in products
    }
    hopeful = list(products)
    for rows, rounds in zip(_TIMED_ROWS, _ROUNDS, strict=True):
        x = torch.randn(rows, _TIMED_SHAPE[1])
        least = {product.name: float("inf") for product in products}
        for _ in range(rounds):
            for product in hopeful:
                started_s = time.perf_counter()
                product.multiply(x, packed[product.name], scales, number_format.levels)
                took_s = time.perf_counter() - started_s
                least[product.name] = min(least[product.name], took_s)
        for name, (_, taken) in times.items():
            taken.append(least[name])
        bound = _HOPELESS * min(least.values())
        hopeful = [product for product in hopeful if least[product.name] <= bound]
    return times


def _choose(
    times: dict[str, tuple[Int8Product, list[float]]], number_format: LinearFormat
) -> ProductChoice:
    """What is fast at one row, and another from the row count on at which it is worth it."""
    least_s = min(taken[0] for _, taken in times.values())
    first, own = next(timed for timed in times.values() if timed[1][0] <= _CLEARLY * least_s)
    second, other = min(times.values(), key=lambda timed: timed[1][-1])
    faster = [own[i] > _WORTH_A_COPY * other[i] for i in range(len(_TIMED_ROWS))]
    if second is first or not faster[-1]:
        return ProductChoice(number_format, (first,), ())
    # Once it wins it must win at all larger counts.
    start = len(faster)
    while start > 0 and faster[start - 1]:
        start -= 1
    bound = _TIMED_ROWS[start - 1] if start else 0
    return ProductChoice(number_format, (first, second), (bound,))
