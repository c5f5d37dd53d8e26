"""`StepBuffer`: all arrays of a step in one copy to the device.

Arrays are placed one after the other in pinned host memory, and what is handed out are views of
the device's counterpart, which are filled by the one copy that `flush` makes. On a CPU nothing
is copied: the views are of the arrays themselves.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT_BYTES = 64
_FIRST_BYTES = 1 << 20


class StepBuffer:
    """Staging memory of one engine; every step starts with `reset`.

    Views of an earlier step must not be used after `reset`: they share its memory.
    """

    def __init__(self, device: torch.device, *, is_staged: bool | None = None) -> None:
        """is_staged: whether to copy; by default wherever the device is not this CPU."""
        self.device = device
        self._is_staged = device.type != "cpu" if is_staged is None else is_staged
        self._used = 0
        self._wanted = _FIRST_BYTES
        self._host = self._device = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None

    def reset(self) -> None:
        """Begin a step, with room for as much as any step before it needed.

        Waits until the last step's copy was made: a step of a prompt that scores nothing is not
        waited for, and its memory may still be waiting to be read.
        """
        self._used = 0
        if self._copied is not None:
            self._copied.synchronize()
        if self._is_staged and self._wanted > self._host.numel():
            pinned = self.device.type == "cuda"
            self._host = torch.empty(self._wanted, dtype=torch.uint8, pin_memory=pinned)
            self._device = torch.empty(self._wanted, dtype=torch.uint8, device=self.device)

    def place(self, array: NDArray[np.generic]) -> Tensor:
        """The array on the device; its content is there once `flush` was called."""
        source = torch.from_numpy(np.ascontiguousarray(array))
        if not self._is_staged:
            return source
        size = source.numel() * source.element_size()
        start = self._used
        self._used = start + -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        if self._used > self._host.numel():
            # Rare: the first step of a new size. The next step has room for it.
            self._wanted = 2 * self._used
            return source.to(self.device)
        if size == 0:
            return torch.empty_like(source, device=self.device)
        self._host[start : start + size].copy_(source.flatten().view(torch.uint8))
        return self._device[start : start + size].view(source.dtype).view(source.shape)

    def flush(self) -> None:
        """Copy what was placed; the device's later work waits for it."""
        used = min(self._used, self._host.numel())
        if self._is_staged and used:
            self._device[:used].copy_(self._host[:used], non_blocking=True)
            if self.device.type == "cuda":
                self._copied = self._copied or torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._copied.record()
