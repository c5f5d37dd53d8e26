"""`ScaledValues`: what every quantised layout comes down to: small numbers times scales.

Shapes: ... leading dimensions (none for a matrix), `out` and `in` features, R and C the rows and
columns of the grid of scales.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from weights.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class ScaledValues:
    """A matrix as small numbers times scales, one scale for every block of the matrix.

    values:       [..., out, in], integers or floats of 8 bits or fewer
    scales:       [..., R, C] of a float type
    zeros:        [..., R, C], subtracted from the values before they are scaled, or None
    block:        rows and columns that share a scale; the last block of either may be cut
    column_block: [in], which column of the grid a column of the matrix belongs to, where that is
                  not `column // block[1]` (activation order), or None
    """

    values: Tensor
    scales: Tensor
    block: tuple[int, int]
    zeros: Tensor | None = None
    column_block: Tensor | None = None

    def dense(self) -> Tensor:
        """The matrix [..., out, in] in float32: (values - zeros) * scales."""
        values = self.values.float()
        if self.zeros is not None:
            values -= self._spread(self.zeros)
        return values.mul_(self._spread(self.scales))

    def check(self, name: str) -> None:
        """Raise CheckpointError when the grid of scales does not cover the matrix."""
        out, width = self.values.shape[-2:]
        rows, columns = self.block
        grid = (-(-out // rows), -(-width // columns))
        for part, tensor in (("scales", self.scales), ("zero points", self.zeros)):
            if tensor is not None and tuple(tensor.shape[-2:]) != grid:
                raise CheckpointError(
                    f"the {part} of tensor {name} have shape {list(tensor.shape)}, but "
                    f"{out} x {width} values in blocks of {rows} x {columns} need {list(grid)}",
                    tensor=name,
                )
        index = self.column_block
        if index is None:
            return
        if index.shape != (width,) or int(index.min()) < 0 or int(index.max()) >= grid[1]:
            raise CheckpointError(
                f"the group index of tensor {name} must name one of {grid[1]} groups for each of "
                f"{width} columns",
                tensor=name,
            )

    def _spread(self, grid: Tensor) -> Tensor:
        """Copy a grid [..., R, C] to every value it is for [..., out, in]."""
        out, width = self.values.shape[-2:]
        rows, columns = self.block
        spread = grid.float()
        if rows > 1:
            spread = spread.repeat_interleave(min(rows, out), -2)[..., :out, :]
        if self.column_block is not None:
            return spread.index_select(-1, self.column_block.long())
        return spread.repeat_interleave(min(columns, width), -1)[..., :width]


def unpack_bits(words: Tensor, num_bits: int, count: int) -> Tensor:
    """Take numbers out of a stream of bits, lowest bits first.

    words:    [..., W] int32; a number may begin in one word and end in the next
    num_bits: 1 to 8
    count:    how many numbers a row holds, at most 32 * W / num_bits

    Returns [..., count] int32, each in 0 .. 2 ** num_bits - 1.
    """
    starts = torch.arange(count, device=words.device) * num_bits
    first, shift = starts // 32, starts % 32
    following = (first + 1).clamp_max_(words.shape[-1] - 1)
    unsigned = words.long() & 0xFFFFFFFF
    pair = unsigned[..., first] | (unsigned[..., following] << 32)
    return ((pair >> shift) & ((1 << num_bits) - 1)).int()


# What the four bits of an E2M1 number mean: sign, two bits of exponent, one of mantissa.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def unpack_fp4(packed: Tensor) -> Tensor:
    """Take E2M1 numbers out of bytes [..., n] uint8, low half first; [..., 2 n] float32."""
    table = torch.tensor((*_E2M1, *(-value for value in _E2M1)), device=packed.device)
    codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
    return table[codes.long()]


def power_of_two_scales(scales: Tensor) -> Tensor:
    """Read scales that may be stored as bare exponents (E8M0 in a byte); float32."""
    if scales.dtype == torch.uint8:
        return torch.exp2(scales.float() - 127)
    return scales.float()
