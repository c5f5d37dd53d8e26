"""Products of the output head that reach memory: float32 sums, in buffers that are kept.

Logits are never rounded to 16 bits: probabilities, log-sum-exp and the draw come from the same
float32 sums. A buffer is allocated once per device and stays where it is, so that captured graphs
may hold its address and its memory can be counted before the first request.

Shapes: R rows, V vocabulary entries, d entries of the residual stream, C columns of the head.
"""

from functools import cache

import torch
from torch import Tensor

from kernels.dispatch import INTERPRETED
from kernels.linear import Int8Weight
from kernels.linear_kernel import launch_int8_linear

# All logits of as many rows as fit, for filters and top tokens.
FULL_BYTES = 256 * 2**20
# Rows of a buffer start at multiples of so many logits: whole sectors, aligned for every load.
_ROW_MULTIPLE = 64


@cache
def kept_buffer(device: torch.device, num_bytes: int) -> Tensor:
    """A float32 buffer of this many bytes, allocated at the first call; its content is anyone's."""
    return torch.empty(num_bytes // 4, dtype=torch.float32, device=device)


def row_stride(columns: int) -> int:
    """Logits from the start of a buffer's row to the start of the next."""
    return -(-columns // _ROW_MULTIPLE) * _ROW_MULTIPLE


def rows_that_fit(num_bytes: int, columns: int) -> int:
    """How many rows of this many logits a buffer holds, at least one."""
    return max(1, num_bytes // (4 * row_stride(columns)))


def buffer_rows(device: torch.device, num_bytes: int, rows: int, columns: int) -> Tensor:
    """Logits [R, C] in a kept buffer, uninitialised; the buffer grows only for a single row."""
    stride = row_stride(columns)
    buffer = kept_buffer(device, max(num_bytes, 4 * stride))
    return buffer[: rows * stride].view(rows, stride)[:, :columns]


def write_logits(
    hidden: Tensor,
    head_weight: Tensor | Int8Weight,
    head_bias: Tensor | None,
    columns: slice,
    logits: Tensor,
) -> None:
    """Write hidden [R, d] times columns [C] of the head, plus bias, to logits [R, C] float32."""
    bias = None if head_bias is None else head_bias[columns]
    if isinstance(head_weight, Int8Weight):
        values, scales = int8_parts(head_weight, hidden)
        launch_int8_linear(hidden, values[columns], scales[columns], bias, output=logits)
        return
    part = head_weight[columns].t()
    if hidden.dtype == torch.float32:
        torch.mm(hidden, part, out=logits)
    elif INTERPRETED and not hidden.is_cuda:  # only CUDA has the product of mixed types
        torch.mm(hidden.float(), part.float(), out=logits)
    else:
        torch.mm(hidden, part, out_dtype=torch.float32, out=logits)
    if bias is not None:
        logits += bias


def int8_parts(head: Int8Weight, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Values [V, d] int8 and scales [V] of an int8 head, where a kernel can read them."""
    # On a GPU the values as they are; packed for a CPU, where only the interpreter comes here.
    return head.integers().contiguous(), head.scales.to(hidden.device)
