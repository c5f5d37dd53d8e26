"""`PrefixCache`: find the pages that already hold the beginning of a prompt.

A page is found by a chain of hashes: its key covers every token before it and every token that
its entries depend on. Causal families need no more than the page's own tokens; in a block
family an entry depends on its whole block, so that the key runs to the end of the last block
that touches the page (`sharing_length`; 1 for causal families). Any-order families chain
(token, position) by rank. The root of the chain names that length and the request's salt, so that
texts of different rules or salts never meet.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray


class PrefixCache:
    """Keys of pages that are settled and may be shared."""

    def __init__(self, *, page_size: int) -> None:
        self.page_size = page_size
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    def root(self, sharing_length: int, salt: str = "") -> bytes:
        """The key before the first page, of texts that share by this grid and with this salt."""
        content = f"{self.page_size}/{sharing_length}/{salt}"
        return hashlib.blake2b(content.encode(), digest_size=16).digest()

    def covers(self, page_index: int, sharing_length: int) -> int:
        """How many tokens must be settled before page number `page_index` may be shared."""
        end = (page_index + 1) * self.page_size
        return -(-end // sharing_length) * sharing_length

    def key(
        self, parent: bytes, text: NDArray[np.int32], page_index: int, sharing_length: int
    ) -> bytes:
        """The key of page `page_index` of a text whose page before has key `parent`.

        text: [L] or [L, 2] int32, tokens or (token, position) by rank, at least to `covers`
        """
        start = page_index * self.page_size
        content = text[start : self.covers(page_index, sharing_length)]
        return hashlib.blake2b(parent + content.tobytes(), digest_size=16).digest()

    def find(self, key: bytes) -> int | None:
        """The page that holds what the key names, or None."""
        return self._page_of.get(key)

    def register(self, key: bytes, page: int) -> None:
        """Make a settled page findable; the first page of a key stays the one that is found."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def holds(self, page: int) -> bool:
        """Whether the page can be found by a key."""
        return page in self._key_of

    def forget(self, page: int) -> None:
        """The page is about to hold something else."""
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._page_of[key]

    def match(
        self, text: NDArray[np.int32], sharing_length: int, salt: str = ""
    ) -> tuple[list[int], bytes]:
        """Pages that hold the beginning of the text, and the key of the last of them."""
        pages: list[int] = []
        parent = self.root(sharing_length, salt)
        while self.covers(len(pages), sharing_length) <= len(text):
            key = self.key(parent, text, len(pages), sharing_length)
            page = self.find(key)
            if page is None:
                break
            pages.append(page)
            parent = key
        return pages, parent
