"""What becomes of a step that fails: which failures are a request's own, and who is suspected."""

from collections.abc import Sequence

import numpy as np
import torch

from sampler.spans.scored import HostScores
from sampler.state.sequence_table import IntArray

# Raised by a device whose state is unknown from then on.
_DEVICE_ERRORS = (torch.AcceleratorError,)
_DEVICE_MESSAGES = ("CUDA error", "CUDNN_STATUS", "CUBLAS_STATUS", "device-side assert")


class StepFailed(Exception):
    """A step that was taken back, before anything of it was written.

    suspects: ids of its requests, most urgent first; any of them may have caused it
    guilty:   of them, those that are known to have
    reason:   one sentence for the log and the guilty requests' clients
    """

    def __init__(self, reason: str, *, suspects: Sequence[str], guilty: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.suspects = list(suspects)
        self.guilty = list(guilty)

    @property
    def groups(self) -> list[list[str]]:
        """Which of the suspects run together next; the guilty ones do not run again."""
        if self.guilty:
            others = [name for name in self.suspects if name not in self.guilty]
            return [others] if others else []
        middle = len(self.suspects) // 2
        return [self.suspects[:middle], self.suspects[middle:]] if middle else []

    @property
    def culprits(self) -> list[str]:
        """Who is known to have caused it: who was alone in the step, if nobody else."""
        return self.guilty or (self.suspects if len(self.suspects) == 1 else [])


class NotANumber(Exception):
    """The network's scores of some seats are no numbers.

    seats: which
    """

    def __init__(self, seats: IntArray) -> None:
        super().__init__("the network gave scores that are not numbers")
        self.seats = seats


def check_numbers(scores: HostScores, seats: IntArray) -> None:
    """Raise NotANumber unless the scores of all rows are numbers; seats [R] of the rows."""
    wrong = np.isnan(scores.entropy) | np.isnan(scores.probability)
    if wrong.any():
        raise NotANumber(np.unique(seats[wrong]))


def leaves_doubt(error: Exception) -> bool:
    """Whether the engine cannot go on: its device or its own invariants are broken."""
    if isinstance(error, (AssertionError, *_DEVICE_ERRORS)):
        return True
    return any(message in str(error) for message in _DEVICE_MESSAGES)
