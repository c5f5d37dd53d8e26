"""`Tokenizer`: text to token ids and back, and the bytes each token stands for."""

import json
from collections.abc import Iterable
from enum import StrEnum

import tokenizers

from weights.config_fields import Json
from weights.errors import CheckpointError


class Spelling(StrEnum):
    """How a vocabulary writes the text of its tokens.

    BYTES:      each byte as a printable character (GPT-2's table)
    METASPACE:  a space as U+2581, other bytes as <0xNN> (SentencePiece)
    WORD_PIECE: a token begins a word unless it starts with ## (BERT)
    PLAIN:      as it stands
    """

    BYTES = "bytes"
    METASPACE = "metaspace"
    WORD_PIECE = "word_piece"
    PLAIN = "plain"


class Tokenizer:
    """A vocabulary with its rules; immutable, and safe to share between threads."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        spelling: Spelling,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
    ) -> None:
        added = backend.get_added_tokens_decoder()
        self._backend = backend
        self._spelling = spelling
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._bytes: dict[int, bytes] = {}
        self.special_token_ids = frozenset(
            token_id for token_id, token in added.items() if token.special
        )
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.pad_token = pad_token

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text, if there is one."""
        return self.token_id(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text, if there is one."""
        return self.token_id(self.eos_token)

    def token_id(self, token: str | None) -> int | None:
        """Id of a token given as the vocabulary writes it; None when there is no such token."""
        return None if token is None else self._backend.token_to_id(token)

    def token_text(self, token_id: int) -> str | None:
        """How the vocabulary writes a token; None for an id without one."""
        return self._backend.id_to_token(token_id) if token_id >= 0 else None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Cut text into tokens.

        add_special_tokens: also what the tokenizer puts around a text, such as its beginning.
        Special tokens spelled out in the text become those tokens. Raises ValueError when the
        text holds surrogates, which no encoding can carry.
        """
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise ValueError("the text holds a lone surrogate, which is not a character") from error
        return ids

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool) -> str:
        """Turn tokens into text; bytes that are no UTF-8 become U+FFFD."""
        skipped = self.special_token_ids if skip_special_tokens else frozenset()
        joined = b"".join(self.token_bytes(token) for token in token_ids if token not in skipped)
        text = joined.decode("utf-8", errors="replace")
        return text[1:] if self.starts_with_space and text.startswith(" ") else text

    @property
    def starts_with_space(self) -> bool:
        """Whether the first token of a text carries a space that the text does not have."""
        return self._spelling in (Spelling.METASPACE, Spelling.WORD_PIECE)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for: none for an id without a token."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        content = self._added.get(token_id)
        if content is not None:
            return content.encode("utf-8")
        text = self.token_text(token_id)
        if text is None:
            return b""
        if self._spelling is Spelling.BYTES:
            return _spell_bytes(text)
        if self._spelling is Spelling.METASPACE:
            return _spell_metaspace(text)
        if self._spelling is Spelling.WORD_PIECE:
            return (text[2:] if text.startswith("##") else f" {text}").encode("utf-8")
        return text.encode("utf-8")


def read_tokenizer_json(
    content: str,
    *,
    where: str,
    bos_token: str | None = None,
    eos_token: str | None = None,
    pad_token: str | None = None,
) -> Tokenizer:
    """Read a tokenizer.json; raises CheckpointError when it is broken."""
    try:
        backend = tokenizers.Tokenizer.from_str(content)
        decoder: Json = json.loads(content).get("decoder")
    except Exception as error:
        raise CheckpointError(f"{where} is no readable tokenizer: {error}") from error
    # Text must not depend on what else is encoded beside it.
    backend.no_padding()
    backend.no_truncation()
    return Tokenizer(
        backend,
        spelling=_find_spelling(decoder),
        bos_token=bos_token,
        eos_token=eos_token,
        pad_token=pad_token,
    )


def _find_spelling(decoder: Json) -> Spelling:
    kinds = _decoder_kinds(decoder)
    if "ByteLevel" in kinds:
        return Spelling.BYTES
    if "WordPiece" in kinds:
        return Spelling.WORD_PIECE
    if kinds & {"Metaspace", "ByteFallback"}:
        return Spelling.METASPACE
    return Spelling.PLAIN


def _decoder_kinds(decoder: Json) -> set[str]:
    if not isinstance(decoder, dict):
        return set()
    parts = decoder.get("decoders")
    nested = [_decoder_kinds(part) for part in parts] if isinstance(parts, list) else []
    return {str(decoder.get("type"))}.union(*nested)


def _byte_characters() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


_BYTE_OF_CHARACTER = _byte_characters()


def _spell_bytes(text: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in text)
    except KeyError:
        return text.encode("utf-8")


def _spell_metaspace(text: str) -> bytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace("\u2581", " ").encode("utf-8")
