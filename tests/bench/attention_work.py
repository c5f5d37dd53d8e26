"""Batches for `bench_paged_attention` and PyTorch's attention on the same work."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from kernels import PagedBatch


@dataclass(frozen=True)
class Layout:
    """Heads of a model."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int = 128


@dataclass(frozen=True)
class Work:
    """So many sequences with so many cached entries, and new rows in each.

    canvas: rows see their whole block of this many rows; 1 is causal
    """

    batch: int
    prefix: int
    rows: int
    canvas: int = 1

    @property
    def entries(self) -> int:
        return self.prefix + self.rows

    def limits(self) -> torch.Tensor:
        """[rows] entries that each row of a sequence sees."""
        blocks = torch.arange(self.rows) // self.canvas + 1
        return (self.prefix + blocks * self.canvas).clamp_max(self.entries)

    def bytes_moved(self, layout: Layout) -> int:
        """Keys and values once, queries in and out, in 16 bits."""
        cache = 2 * self.batch * self.entries * layout.num_kv_heads
        rows = 2 * self.batch * self.rows * layout.num_heads
        return 2 * (cache + rows) * layout.head_dim

    def flops(self, layout: Layout) -> int:
        """Both products, over the entries that rows see."""
        seen = int(self.limits().sum()) * self.batch
        return 4 * seen * layout.num_heads * layout.head_dim


@dataclass(frozen=True)
class Tensors:
    """A paged batch and the same keys and values side by side [B, Hkv, L, D]."""

    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    batch: PagedBatch
    dense_keys: torch.Tensor
    dense_values: torch.Tensor


def make_tensors(work: Work, layout: Layout, *, page_size: int, device: torch.device) -> Tensors:
    """Random tensors; the pages of all sequences are mixed."""
    half = {"dtype": torch.bfloat16, "device": device}
    pages = -(-work.entries // page_size)
    shape = (work.batch * pages, page_size, layout.num_kv_heads, layout.head_dim)
    keys, values = torch.randn(shape, **half), torch.randn(shape, **half)
    table = torch.randperm(work.batch * pages, device=device).view(work.batch, pages)
    starts = torch.arange(work.batch + 1, device=device) * work.rows
    batch = PagedBatch(
        span_starts=starts.int(),
        page_table=table.int(),
        slots=torch.zeros(work.batch * work.rows, dtype=torch.int64, device=device),
        limits=work.limits().int().repeat(work.batch).to(device),
        max_span=work.rows,
        max_limit=work.entries,
    )
    q = torch.randn(work.batch * work.rows, layout.num_heads, layout.head_dim, **half)
    return Tensors(q, keys, values, batch, _dense(keys, table, work), _dense(values, table, work))


def _dense(cache: torch.Tensor, table: torch.Tensor, work: Work) -> torch.Tensor:
    dense = cache[table].flatten(1, 2)[:, : work.entries]  # [B, L, Hkv, D]
    return dense.transpose(1, 2).contiguous()


def _queries(tensors: Tensors, work: Work) -> torch.Tensor:
    """Queries as PyTorch takes them, [B, H, rows, D]."""
    rows = tensors.q.view(work.batch, work.rows, *tensors.q.shape[1:])
    return rows.transpose(1, 2).contiguous()


def torch_attention(tensors: Tensors, work: Work, scale: float):
    """PyTorch's fused attention as a function without arguments; its output is [B, H, rows, D].

    FlashAttention runs all masks that it has: none, and causal with or without a prefix. Others
    are dense, which no fused attention of PyTorch takes with keys shared by query heads: these
    are repeated for it, outside of what is timed.
    """
    q = _queries(tensors, work)
    dense = (tensors.dense_keys, tensors.dense_values)
    limits = work.limits().to(q.device)
    options = {"scale": scale, "enable_gqa": True}
    if bool((limits == work.entries).all()):
        return lambda: scaled_dot_product_attention(q, *dense, **options)
    if work.canvas == 1 and work.prefix == 0:
        return lambda: scaled_dot_product_attention(q, *dense, is_causal=True, **options)
    if work.canvas == 1 and q.is_cuda:
        causal = causal_lower_right(work.rows, work.entries)
        return lambda: scaled_dot_product_attention(q, *dense, attn_mask=causal, **options)
    mask = torch.arange(work.entries, device=q.device)[None] < limits[:, None]
    group = q.shape[1] // dense[0].shape[1]
    dense = tuple(part.repeat_interleave(group, dim=1) for part in dense)
    return lambda: scaled_dot_product_attention(q, *dense, attn_mask=mask, scale=scale)


def only(backend: SDPBackend, function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The function with one of PyTorch's fused attentions and no other.

    Calling it raises RuntimeError where that one does not do the work.
    """

    def run() -> torch.Tensor:
        with sdpa_kernel(backend):
            return function()

    return run


def flex(tensors: Tensors, work: Work, scale: float):
    """FlexAttention with the equivalent block mask, compiled, as a function without arguments."""
    q = _queries(tensors, work)
    limits = work.limits().to(q.device)

    def sees(_batch, _head, row, entry):
        return entry < limits[row]

    mask = create_block_mask(sees, None, None, work.rows, work.entries, device=q.device)
    # Compiled for these very shapes: code for sizes unknown is slower, and after a few shapes the
    # compiler would give up and run it uncompiled.
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    dense = (tensors.dense_keys, tensors.dense_values)
    return lambda: compiled(q, *dense, block_mask=mask, scale=scale, enable_gqa=True)
