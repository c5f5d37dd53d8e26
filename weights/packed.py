"""`take_linear`: a matrix of a checkpoint as a `Linear`, kept packed where that is possible.

Shapes: `out` and `in` features, R and C rows and columns of a grid of scales.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import Fp8Weight, Int4Weight, can_pack_int4, pack_int4
from weights.network.linear import Linear, Placement
from weights.network.tensor_reader import Parts
from weights.scaled_values import ScaledValues

_MOST_INT4 = 15
_MIDDLE_INT4 = 8


@dataclass(frozen=True, slots=True)
class Piece:
    """A stored matrix: the part it plays and its shape [out, in]."""

    part: str
    shape: tuple[int, int]


def take_linear(
    parts: Parts,
    placement: Placement,
    pieces: list[Piece],
    layer: int,
    *,
    bias: Tensor | None = None,
) -> Linear:
    """Take matrices with the same inputs as one, the first piece's outputs first.

    Raises CheckpointError when one is missing or misshapen.
    """
    placed_bias = None if bias is None else placement.tensor(bias)
    if placement.keeps_packed:
        found = [parts.scaled(piece.part, piece.shape, layer) for piece in pieces]
        quantized = [values for values in found if values is not None]
        if len(quantized) == len(pieces):
            packed = pack(_joined(quantized), placement.device)
            if packed is not None:
                return Linear(packed, placed_bias)
    return Linear(_placed(parts, placement, pieces, layer), placed_bias)


def _placed(parts: Parts, placement: Placement, pieces: list[Piece], layer: int) -> Tensor:
    """Copy each matrix straight to where it stays: no more than one is held beside it."""
    rows = sum(piece.shape[0] for piece in pieces)
    shape = (rows, pieces[0].shape[1])
    placed = torch.empty(shape, dtype=placement.dtype, device=placement.device)
    start = 0
    for piece in pieces:
        stop = start + piece.shape[0]
        placed[start:stop].copy_(parts.take(piece.part, piece.shape, layer))
        start = stop
    return placed


def pack(values: ScaledValues | None, device: torch.device) -> Int4Weight | Fp8Weight | None:
    """Bring a quantised matrix into a form that is multiplied as it is; None where none fits."""
    if values is None or values.values.ndim != 2:
        return None
    if values.values.dtype == torch.float8_e4m3fn and values.zeros is None:
        return _pack_fp8(values, device)
    if values.values.is_floating_point() or values.block[0] != 1:
        return None
    return _pack_int4(values, device)


def _pack_fp8(values: ScaledValues, device: torch.device) -> Fp8Weight | None:
    rows, columns = values.block
    is_whole = columns >= values.values.shape[1]
    # A step of the product must not end inside a block.
    if values.column_block is not None or not (is_whole or columns % 16 == 0):
        return None
    return Fp8Weight(
        values.values.to(device),
        values.scales.float().contiguous().to(device),
        (rows, columns),
    )


def _pack_int4(values: ScaledValues, device: torch.device) -> Int4Weight | None:
    codes, zeros, size = values.values.int(), values.zeros, values.block[1]
    width = codes.shape[1]
    if zeros is None:
        # Signed around 0: move numbers and their zero up alike.
        codes = codes + _MIDDLE_INT4
        zeros = torch.full(values.scales.shape, _MIDDLE_INT4)
    elif int(codes.min()) < 0 or int(zeros.min()) < 0:
        codes, zeros = codes + _MIDDLE_INT4, zeros.int() + _MIDDLE_INT4
    fits = all(
        int(number.min()) >= 0 and int(number.max()) <= _MOST_INT4 for number in (codes, zeros)
    )
    if not fits or not can_pack_int4(in_features=width, group_size=size):
        return None
    order = None
    if values.column_block is not None:
        order = values.column_block.long().argsort(stable=True)
        if not torch.equal(values.column_block.long()[order], torch.arange(width) // size):
            return None  # a group has more columns than another
        codes = codes[:, order]
    return pack_int4(
        codes.to(device),
        _narrow(values.scales).to(device),
        zeros.to(device),
        column_order=None if order is None else order.to(device),
    )


def _narrow(scales: Tensor) -> Tensor:
    """Scales in the narrowest of the types that files have, without changing one."""
    wide = scales.float()
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(wide.to(dtype).float(), wide):
            return wide.to(dtype)
    return wide


def _joined(pieces: list[ScaledValues]) -> ScaledValues | None:
    """Matrices one under the other, where their grids of scales allow it."""
    if len(pieces) == 1:
        return pieces[0]
    first = pieces[0]
    columns = first.block[1]
    rows = [piece.block[0] for piece in pieces]
    for piece in pieces[1:]:
        same_kind = piece.values.dtype == first.values.dtype and piece.block[1] == columns
        if not same_kind or not _same(piece.column_block, first.column_block):
            return None
    if any((piece.zeros is None) != (first.zeros is None) for piece in pieces):
        return None
    # A grid goes on under another only where blocks end with the matrix; else one scale a row.
    aligned = len(set(rows)) == 1 and all(
        piece.values.shape[0] % piece.block[0] == 0 for piece in pieces
    )
    grids = pieces if aligned else [_per_row(piece) for piece in pieces]
    zeros = [piece.zeros for piece in grids if piece.zeros is not None]
    return ScaledValues(
        torch.cat([piece.values for piece in grids]),
        torch.cat([piece.scales for piece in grids]),
        (rows[0] if aligned else 1, columns),
        torch.cat(zeros) if zeros else None,
        first.column_block,
    )


def _per_row(piece: ScaledValues) -> ScaledValues:
    """The same matrix with a row of scales for each of its rows."""
    out = piece.values.shape[0]

    def spread(grid: Tensor) -> Tensor:
        return grid.repeat_interleave(min(piece.block[0], out), 0)[:out]

    return ScaledValues(
        piece.values,
        spread(piece.scales),
        (1, piece.block[1]),
        None if piece.zeros is None else spread(piece.zeros),
        piece.column_block,
    )


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
