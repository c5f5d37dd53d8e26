"""Text to train on: documents, their held-out part, a small vocabulary, batches of tokens.

Shapes: N tokens of a text, B windows of L tokens.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

END_OF_DOCUMENT = "\f"
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
# One document in so many is held out, chosen by its text.
_HELD_OUT_ONE_IN = 50
# A longer document counts as several, so that a book or a single file can be split too.
_LONGEST_DOCUMENT = 20_000
# Characters that are enough to find a vocabulary of a few thousand.
_VOCABULARY_SAMPLE = 12_000_000


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents to learn from and documents to measure on."""

    trained: list[str]
    held_out: list[str]


def read_corpus(paths: list[Path]) -> Corpus:
    """Read plain-text files, and the .txt files of folders; split by document.

    A form feed ends a document. Raises ValueError when a path does not exist, a file is not
    UTF-8, or too little is left on either side.
    """
    documents = [document for path in text_files(paths) for document in _documents(path)]
    corpus = Corpus([], [])
    for document in documents:
        (corpus.held_out if _is_held_out(document) else corpus.trained).append(document)
    if not corpus.trained or not corpus.held_out:
        raise ValueError(
            f"the text has {len(documents)} documents, of which {len(corpus.held_out)} are held "
            "out; both parts need some"
        )
    return corpus


def text_files(paths: list[Path]) -> list[Path]:
    """The files of a list of files and folders, in order."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist")
        files.extend(sorted(path.glob("*.txt")) if path.is_dir() else [path])
    if not files:
        raise ValueError("there is no .txt file in the folders of --text")
    return files


def _documents(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    for document in text.split(END_OF_DOCUMENT):
        yield from _pieces(document.strip())


def _pieces(document: str) -> Iterator[str]:
    """Cut a long document at line ends, or where it has none, at its length."""
    while len(document) > _LONGEST_DOCUMENT:
        cut = document.rfind("\n", 1, _LONGEST_DOCUMENT)
        cut = _LONGEST_DOCUMENT if cut < 0 else cut
        yield document[:cut]
        document = document[cut:].lstrip("\n")
    if document:
        yield document


def _is_held_out(document: str) -> bool:
    digest = hashlib.sha256(document.encode()).digest()
    return int.from_bytes(digest[:4]) % _HELD_OUT_ONE_IN == 0


def train_vocabulary(documents: list[str], *, vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE; id 0 ends a text. From: Sennrich et al. 2016, arXiv 1508.07909."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(documents), trainer=trainer)
    return tokenizer


def _sample(documents: list[str]) -> Iterator[str]:
    """Documents spread over all of them, until there are enough."""
    step = max(1, sum(map(len, documents)) // _VOCABULARY_SAMPLE)
    yield from documents[::step]


def encode(documents: list[str], tokenizer: tokenizers.Tokenizer) -> Tensor:
    """The documents' tokens behind one another, each ended by the end of text: [N] int32."""
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(documents, add_special_tokens=False):
        ids.extend(encoding.ids)
        ids.append(END_OF_TEXT_ID)
    return torch.tensor(ids, dtype=torch.int32)


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of a text [N] int32; which ones a step gets depends on seed and step alone."""

    tokens: Tensor
    length: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        """Raise ValueError when the text is shorter than a window."""
        if self.tokens.shape[0] < self.length:
            raise ValueError(
                f"a part of the text has {self.tokens.shape[0]} tokens, but a window {self.length}"
            )

    def generator(self, step: int, *, device: torch.device) -> torch.Generator:
        """Where the randomness of a step comes from."""
        return torch.Generator(device).manual_seed(self.seed * 1_000_003 + step)

    def batch(self, step: int) -> Tensor:
        """Windows [B, L] int64 that begin anywhere."""
        generator = self.generator(step, device=torch.device("cpu"))
        last = self.tokens.shape[0] - self.length + 1
        starts = torch.randint(0, last, (self.batch_size, 1), generator=generator)
        return self.tokens[starts + torch.arange(self.length)].long()

    def all_in_order(self, *, at_most: int) -> Tensor:
        """Windows [M, L] int64 behind one another, evenly spread when there are too many."""
        count = self.tokens.shape[0] // self.length
        windows = self.tokens[: count * self.length].view(count, self.length).long()
        return windows[torch.linspace(0, count - 1, min(count, at_most)).long()]
