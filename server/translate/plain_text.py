"""Text of clients that spells special tokens, kept from becoming them behind a chat template.

A template's own special tokens must become tokens; the same spelling inside a message must not, or
whoever writes a message could end it and speak in another role. Such spellings are marked before
the template runs and cut at the mark when the prompt is encoded: no tokenizer finds a special token
in two halves of its spelling.
"""

import re
from functools import lru_cache

from server.error_responses import invalid
from weights.config_fields import Json
from weights.text.tokenizer import Tokenizer

# A code point that Unicode keeps out of texts for ever.
_MARK = "\ufdd0"


@lru_cache(maxsize=8)
def special_spellings(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """What matches every special token's spelling; None when there is none."""
    texts = {tokenizer.token_bytes(token_id).decode() for token_id in tokenizer.special_token_ids}
    known = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, known))) if known else None


def marked(value: Json, spellings: re.Pattern[str] | None) -> Json:
    """A value whose texts have a mark in each special token's spelling.

    Raises ApiError for a text that holds the mark itself.
    """
    if isinstance(value, str):
        return _marked_text(value, spellings)
    if isinstance(value, list):
        return [marked(item, spellings) for item in value]
    if isinstance(value, dict):
        return {
            _marked_text(name, spellings): marked(item, spellings) for name, item in value.items()
        }
    return value


def _marked_text(text: str, spellings: re.Pattern[str] | None) -> str:
    if _MARK in text:
        raise invalid("messages: U+FDD0 is not a character", param="messages")
    if spellings is None:
        return text
    return spellings.sub(lambda found: f"{found[0][0]}{_MARK}{found[0][1:]}", text)


def encode_marked(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """The tokens of a prompt that may hold marks."""
    first, *rest = text.split(_MARK)
    token_ids = tokenizer.encode(first, add_special_tokens=add_special_tokens)
    for part in rest:
        token_ids += tokenizer.encode(part, add_special_tokens=False)
    return token_ids
