"""Sudoku of 6 x 6 with one solution: made from a seed, and varied by what keeps it a sudoku.

Rows and columns hold 1..6 once, and so does every box of 2 x 3 cells. A cell is counted from left
to right and from top to bottom, 0..35; 0 is an empty one.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 6
NUM_CELLS = SIZE * SIZE
BOX_ROWS, BOX_COLUMNS = 2, 3
_ALL = (1 << SIZE) - 1
FEWEST_GIVENS, MOST_GIVENS = 12, 16


def _peers() -> tuple[tuple[int, ...], ...]:
    def unit(cell: int) -> tuple[int, int, int]:
        row, column = divmod(cell, SIZE)
        return row, column, row // BOX_ROWS * SIZE + column // BOX_COLUMNS

    units = [unit(cell) for cell in range(NUM_CELLS)]
    return tuple(
        tuple(
            other
            for other in range(NUM_CELLS)
            if other != cell and any(a == b for a, b in zip(units[cell], units[other], strict=True))
        )
        for cell in range(NUM_CELLS)
    )


_PEERS = _peers()


@dataclass(frozen=True, slots=True)
class Puzzles:
    """Puzzles: [N, 36] int64, 0 where nothing is given; solutions: [N, 36] int64."""

    puzzles: Tensor
    solutions: Tensor


def count_solutions(cells: list[int], *, at_most: int) -> int:
    """How many ways there are to fill the empty cells, counted up to `at_most`."""
    return _search(list(cells), at_most, None)


def _search(cells: list[int], at_most: int, source: random.Random | None) -> int:
    """Fill the cells in place, the most constrained first; they keep the last solution found."""
    best, options = -1, 0
    for cell, value in enumerate(cells):
        if value:
            continue
        free = _free(cells, cell)
        if best < 0 or free.bit_count() < options.bit_count():
            best, options = cell, free
        if options.bit_count() <= 1:
            break
    if best < 0:
        return 1
    digits = [digit for digit in range(1, SIZE + 1) if options >> (digit - 1) & 1]
    if source is not None:
        source.shuffle(digits)
    found = 0
    for digit in digits:
        cells[best] = digit
        found += _search(cells, at_most - found, source)
        if found >= at_most:
            return found
    cells[best] = 0
    return found


def _free(cells: list[int], cell: int) -> int:
    """Bits of the digits that no peer of a cell has."""
    taken = 0
    for peer in _PEERS[cell]:
        if cells[peer]:
            taken |= 1 << (cells[peer] - 1)
    return _ALL & ~taken


def make_puzzles(count: int, *, seed: int) -> Puzzles:
    """Puzzles with one solution and 12 to 16 givens, their number drawn evenly."""
    source = random.Random(seed)
    puzzles: list[list[int]] = []
    solutions: list[list[int]] = []
    while len(puzzles) < count:
        solution = [0] * NUM_CELLS
        _search(solution, 1, source)
        puzzle = _dig(solution, source.randint(FEWEST_GIVENS, MOST_GIVENS), source)
        if puzzle is not None:
            puzzles.append(puzzle)
            solutions.append(solution)
    return Puzzles(torch.tensor(puzzles), torch.tensor(solutions))


def _dig(solution: list[int], givens: int, source: random.Random) -> list[int] | None:
    """Empty cells in a random order while the solution stays the only one; None when stuck."""
    puzzle, left = list(solution), NUM_CELLS
    for cell in source.sample(range(NUM_CELLS), NUM_CELLS):
        puzzle[cell] = 0
        if count_solutions(puzzle, at_most=2) == 1:
            left -= 1
        else:
            puzzle[cell] = solution[cell]
        if left == givens:
            return puzzle
    return None


def vary(chosen: Puzzles, generator: torch.Generator) -> Puzzles:
    """The same puzzles [n, 36] with digits renamed and rows and columns moved as is allowed.

    Bands, the rows of a band, stacks and the columns of a stack change places: what was a puzzle
    with one solution is one again.
    """
    count = chosen.puzzles.shape[0]
    rows = _moved_lines(count, BOX_ROWS, generator)
    columns = _moved_lines(count, BOX_COLUMNS, generator)
    cells = (rows[:, :, None] * SIZE + columns[:, None, :]).flatten(1)
    names = 1 + torch.rand(count, SIZE, generator=generator).argsort(dim=1)
    names = torch.cat((torch.zeros(count, 1, dtype=torch.int64), names), dim=1)
    return Puzzles(
        names.gather(1, chosen.puzzles.gather(1, cells)),
        names.gather(1, chosen.solutions.gather(1, cells)),
    )


def _moved_lines(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Orders of six lines [n, 6] in which groups of `size` move, and lines inside a group."""
    groups = SIZE // size
    order = torch.rand(count, groups, generator=generator).argsort(dim=1)
    inside = torch.rand(count, groups, size, generator=generator).argsort(dim=2)
    return (order[:, :, None] * size + inside).flatten(1)
