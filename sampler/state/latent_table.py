"""`LatentTable`: progress and movement of every latent on the canvases, one ring of columns a seat.

A position has column `position % columns`; a canvas is never longer than that. The vectors
themselves stay on the device (`latent_store.py`): the host decides by numbers alone.

Shapes: N seats, C columns.
"""

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from sampler.state.latent_knobs import LatentKnobs

# Of any canvas of latents.
LARGEST_LATENT_WIDTH = 64

IntArray = NDArray[np.int64]


class LatentTable:
    """What the host knows of latents; all arrays are [N, C].

    progress:    t, 1 unknown, 0 final
    previous:    t before the last predictor step (Heun)
    corrects:    the next move of the latent corrects the last one (Heun)
    noise_draws: how often noise was drawn for the position
    keep, expected, start, slope, noise: the move that is due before the next step,
                 z <- keep z + expected E[e] + start z_0 + slope u_0 + noise n
    remembers:   z_0 and u_0 become z and (z - E[e]) / t before that move (Heun)
    knobs:       [N] by name, the fields of `LatentKnobs`
    """

    columns = LARGEST_LATENT_WIDTH

    def __init__(self, num_seats: int) -> None:
        shape = (num_seats, self.columns)
        self.progress = np.ones(shape, dtype=np.float32)
        self.previous = np.ones(shape, dtype=np.float32)
        self.corrects = np.zeros(shape, dtype=np.bool_)
        self.noise_draws = np.zeros(shape, dtype=np.int32)
        self.keep = np.zeros(shape, dtype=np.float32)
        self.expected = np.zeros(shape, dtype=np.float32)
        self.start = np.zeros(shape, dtype=np.float32)
        self.slope = np.zeros(shape, dtype=np.float32)
        self.noise = np.zeros(shape, dtype=np.float32)
        self.remembers = np.zeros(shape, dtype=np.bool_)
        self.knobs = {field.name: np.zeros(num_seats) for field in fields(LatentKnobs)}

    def take_knobs(self, seat: int, knobs: LatentKnobs) -> None:
        """A sequence sits down with its request's knobs."""
        for name, column in self.knobs.items():
            column[seat] = getattr(knobs, name)

    def open(self, seat: int, first: int, stop: int) -> None:
        """Positions that join a canvas begin as noise, at t = 1."""
        columns = np.arange(first, stop) % self.columns
        self.progress[seat, columns] = self.previous[seat, columns] = 1
        self.corrects[seat, columns] = self.remembers[seat, columns] = False
        self.noise_draws[seat, columns] = 0
        self.set_move(np.full(columns.size, seat), columns, noise=np.ones(columns.size))

    def set_move(
        self,
        seats: IntArray,
        columns: IntArray,
        *,
        keep: NDArray[np.floating] | float = 0.0,
        expected: NDArray[np.floating] | float = 0.0,
        start: NDArray[np.floating] | float = 0.0,
        slope: NDArray[np.floating] | float = 0.0,
        noise: NDArray[np.floating] | float = 0.0,
    ) -> None:
        """Say how latents move before the next step; each number is [n] or the same for all."""
        self.keep[seats, columns] = keep
        self.expected[seats, columns] = expected
        self.start[seats, columns] = start
        self.slope[seats, columns] = slope
        self.noise[seats, columns] = noise

    def moved(self, seats: IntArray, columns: IntArray) -> None:
        """The moves were made: what follows is to stay."""
        self.set_move(seats, columns, keep=1.0)
        self.remembers[seats, columns] = False
