"""`Detokenizer`: text of tokens as they arrive, never splitting a character."""

import codecs
from collections.abc import Iterable

from weights.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns a stream of tokens into a stream of text.

    What it has given out is final: bytes that may still become a character are held back until
    they do, or until it is clear that they cannot and U+FFFD stands for them.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, continues_text: bool = True
    ) -> None:
        """Start a text.

        continues_text: the tokens follow others (an answer follows its prompt), so that a space
        carried by the first one is meant.
        """
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drops_space = tokenizer.starts_with_space and not continues_text

    def push(self, token_ids: Iterable[int]) -> str:
        """Take tokens and return the text that they complete."""
        arrived = b"".join(
            self._tokenizer.token_bytes(token) for token in token_ids if token not in self._skipped
        )
        return self._release(self._decoder.decode(arrived))

    def finish(self) -> str:
        """End the text and return what was held back."""
        return self._release(self._decoder.decode(b"", final=True))

    def _release(self, text: str) -> str:
        if self._drops_space and text:
            self._drops_space = False
            return text.removeprefix(" ")
        return text
