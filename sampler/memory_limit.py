"""How much memory a cache may ask for: what the machine, its container or the GPU has."""

import os
from pathlib import Path

import torch

# Where the kernel says what a container may use; "max" means no limit.
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
_GIB = 2**30


def check_cache_bytes(cache_bytes: int | None, *, has_bytes: int, where: str) -> None:
    """Raise ValueError when a cache of this size cannot be, with both numbers."""
    if cache_bytes is not None and cache_bytes > has_bytes:
        raise ValueError(
            f"kv_cache_memory: {cache_bytes / _GIB:.1f} GiB are asked for, but {where} has "
            f"{has_bytes / _GIB:.1f} GiB"
        )


def memory_bytes(device: torch.device) -> tuple[int, str]:
    """Memory that a device has in all, and what to call it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1], "the GPU"
    return machine_bytes(_CONTAINER_LIMIT), "this machine"


def machine_bytes(container_limit: Path) -> int:
    """Memory of this machine, or less where a container is held to less."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        said = container_limit.read_text().strip()
    except OSError:
        return installed
    return min(installed, int(said)) if said.isdecimal() else installed
