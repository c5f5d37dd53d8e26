"""`KVCache`: the tensors in which keys and values of all sequences lie, page by page."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of every layer.

    keys, values: [layers, pages, page_size, kv_heads, head_dim], any float dtype. They stay
    uninitialised: an entry is written before a row may see it.
    """

    keys: Tensor
    values: Tensor

    @property
    def num_pages(self) -> int:
        """How many pages there are."""
        return self.keys.shape[1]

    @property
    def page_size(self) -> int:
        """Entries in a page."""
        return self.keys.shape[2]

    @property
    def cache_bytes(self) -> int:
        """Memory that both tensors take, in bytes."""
        return 2 * self.keys.numel() * self.keys.element_size()


def allocate_kv_cache(
    *,
    num_layers: int,
    num_pages: int,
    page_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    is_zeroed: bool = False,
) -> KVCache:
    """Allocate a cache; raises ValueError when a size is below 1.

    is_zeroed: entries hold zeros until they are written, as `plan_attention` needs them for rows
               that are the same bit for bit in any company
    """
    shape = (num_layers, num_pages, page_size, num_kv_heads, head_dim)
    if min(shape) < 1:
        raise ValueError(f"every size of a cache must be at least 1, got {shape}")
    allocate = torch.zeros if is_zeroed else torch.empty
    return KVCache(
        keys=allocate(shape, dtype=dtype, device=device),
        values=allocate(shape, dtype=dtype, device=device),
    )


def page_bytes(
    *, num_layers: int, page_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> int:
    """Memory of one page over all layers, keys and values together, in bytes."""
    return 2 * num_layers * page_size * num_kv_heads * head_dim * dtype.itemsize
