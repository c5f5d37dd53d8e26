"""Three generated tasks that a canvas and an AR decoder meet differently, in 24 symbols.

    sudoku..3.41...=     6 x 6, one solution: what is easy stands anywhere (planning)
    chain=               a random digit, then x := 3 x + 1 mod 10: uncertain first, certain after,
                         and wrong where two digits are drawn side by side
    add0012345678+9...=  a sum, most significant digit first: carries come from the right

Every answer is ended by the end of text. Texts depend on seeds and numbers only.

Shapes: B texts of L tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import tokenizers
import torch
from tokenizers import decoders, models
from torch import Tensor

from weights.training.data.sudoku import NUM_CELLS, Puzzles, make_puzzles, vary
from weights.training.data.text import END_OF_TEXT, END_OF_TEXT_ID

SYMBOLS = (END_OF_TEXT, *"0123456789", *".+=", *"sudok", *"chain")
_IDS = {symbol: index for index, symbol in enumerate(SYMBOLS)}
_DIGIT_0, _EMPTY = _IDS["0"], _IDS["."]
CHAIN_LENGTH = 32
ADDEND_DIGITS = 10
# Columns whose digits add up to nine, through which a carry passes.
_SHARE_OF_NINES = 0.3
# The longest answer with its end, and the widest canvas.
CANVAS_WIDTH = 48


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of text: how long its prompt is, and its answer with the end of text."""

    name: str
    prompt_length: int
    answer_length: int

    @property
    def length(self) -> int:
        """Of a whole text."""
        return self.prompt_length + self.answer_length


SUDOKU = Task("sudoku", len("sudoku=") + NUM_CELLS, NUM_CELLS + 1)
CHAIN = Task("chain", len("chain="), CHAIN_LENGTH + 1)
ADD = Task("add", len("add+=") + 2 * ADDEND_DIGITS, ADDEND_DIGITS + 2)
TASKS = (SUDOKU, CHAIN, ADD)


def symbol_tokenizer() -> tokenizers.Tokenizer:
    """One token for every symbol; id 0 ends a text."""
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=dict(_IDS), merges=[]))
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


class TaskTexts:
    """Texts of every task, in any number."""

    def __init__(self, puzzles: Puzzles) -> None:
        """puzzles: those that sudoku texts are varied from."""
        self.puzzles = puzzles
        self._make: dict[str, Callable[[int, torch.Generator], Tensor]] = {
            SUDOKU.name: self._sudoku,
            CHAIN.name: _chain,
            ADD.name: _add,
        }

    @classmethod
    def make(cls, num_puzzles: int, *, seed: int) -> "TaskTexts":
        """Texts whose puzzles are varied from so many made from a seed."""
        return cls(make_puzzles(num_puzzles, seed=seed))

    def draw(self, task: Task, count: int, generator: torch.Generator) -> Tensor:
        """Texts [count, L] int64 of a task, L its length."""
        return self._make[task.name](count, generator)

    def _sudoku(self, count: int, generator: torch.Generator) -> Tensor:
        total = self.puzzles.puzzles.shape[0]
        index = torch.randint(total, (count,), generator=generator)
        chosen = Puzzles(self.puzzles.puzzles[index], self.puzzles.solutions[index])
        varied = vary(chosen, generator)
        given = torch.where(varied.puzzles == 0, _EMPTY, varied.puzzles + _DIGIT_0)
        return _text("sudoku", given, "=", varied.solutions + _DIGIT_0)


def _chain(count: int, generator: torch.Generator) -> Tensor:
    digits = [torch.randint(10, (count,), generator=generator)]
    while len(digits) < CHAIN_LENGTH:
        digits.append((3 * digits[-1] + 1) % 10)
    return _text("chain=", torch.stack(digits, dim=1) + _DIGIT_0)


def _add(count: int, generator: torch.Generator) -> Tensor:
    shape = (count, ADDEND_DIGITS)
    first = torch.randint(10, shape, generator=generator)
    second = torch.randint(10, shape, generator=generator)
    passes = torch.rand(shape, generator=generator) < _SHARE_OF_NINES
    second = torch.where(passes, 9 - first, second)
    carry = torch.zeros(count, dtype=torch.int64)
    digits = []
    for column in reversed(range(ADDEND_DIGITS)):
        total = first[:, column] + second[:, column] + carry
        digits.append(total % 10)
        carry = total // 10
    summed = torch.stack([carry, *reversed(digits)], dim=1)
    return _text("add", first + _DIGIT_0, "+", second + _DIGIT_0, "=", summed + _DIGIT_0)


def _text(*parts: str | Tensor) -> Tensor:
    """Words and symbols [B, ...] side by side, ended by the end of text."""
    count = next(part.shape[0] for part in parts if isinstance(part, Tensor))
    columns = [
        part
        if isinstance(part, Tensor)
        else torch.tensor([_IDS[symbol] for symbol in part]).expand(count, -1)
        for part in parts
    ]
    return torch.cat((*columns, torch.full((count, 1), END_OF_TEXT_ID)), dim=1)


def is_right(task: Task, texts: Tensor, answers: Tensor) -> Tensor:
    """Which answers [B, A] are right for texts [B, L]; [B] bool.

    A chain is right from any first digit; the other tasks have one right answer.
    """
    if task is not CHAIN:
        return (answers == texts[:, task.prompt_length :]).all(dim=1)
    digits = answers[:, :CHAIN_LENGTH] - _DIGIT_0
    are_digits = ((digits >= 0) & (digits < 10)).all(dim=1)
    follows = ((3 * digits[:, :-1] + 1) % 10 == digits[:, 1:]).all(dim=1)
    return are_digits & follows & (answers[:, CHAIN_LENGTH] == END_OF_TEXT_ID)


def text_of(ids: list[int]) -> str:
    """The symbols of token ids, without the end of text."""
    return "".join(SYMBOLS[index] for index in ids if index != END_OF_TEXT_ID)
