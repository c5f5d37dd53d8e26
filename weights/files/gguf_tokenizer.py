"""The tokenizer inside a GGUF file, rebuilt from its metadata."""

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from weights.config_fields import ConfigFields, Json
from weights.errors import CheckpointError
from weights.text.tokenizer import Spelling, Tokenizer

_CONTROL, _USER_DEFINED = 3, 4
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_WORDS = _QWEN2_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|", 1)
# Names of the same cutting rule.
_LLAMA3_RULES = ("llama-bpe", "llama3", "llama-v3")


def read_gguf_tokenizer(metadata: dict[str, Json], *, where: str) -> Tokenizer | None:
    """Rebuild a byte-level BPE tokenizer; None when the file has no tokenizer at all.

    Raises CheckpointError for another kind of vocabulary, or one cut in an unknown way.
    """
    fields = ConfigFields(metadata, where)
    if not fields.has("tokenizer.ggml.model"):
        return None
    kind = fields.text("tokenizer.ggml.model")
    if kind != "gpt2":
        raise fields.refuse("tokenizer.ggml.model", "but only gpt2 (byte-level BPE) is known")
    tokens = fields.texts("tokenizer.ggml.tokens")
    rule = fields.text("tokenizer.ggml.pre", "gpt-2")
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: token_id for token_id, token in enumerate(tokens)},
            merges=_merges(fields),
            ignore_merges=rule in _LLAMA3_RULES,
        )
    )
    if rule == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _cutter(rule, fields)
    backend.decoder = decoders.ByteLevel()
    _add_special_tokens(backend, tokens, fields.numbers("tokenizer.ggml.token_type"))
    named = {name: _named_token(fields, tokens, name) for name in ("bos", "eos", "padding")}
    if named["bos"] is not None and fields.flag("tokenizer.ggml.add_bos_token", False):
        bos = named["bos"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokens.index(bos))]
        )
    return Tokenizer(
        backend,
        spelling=Spelling.BYTES,
        bos_token=named["bos"],
        eos_token=named["eos"],
        pad_token=named["padding"],
    )


def _cutter(rule: str, fields: ConfigFields) -> pre_tokenizers.PreTokenizer:
    """How text is cut into words before merging; each rule is the one its models trained with."""
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    with_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if rule == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, with_words])
    if rule in ("gpt-2", "gpt2"):
        return with_words
    if rule == "qwen2":
        return pre_tokenizers.Sequence([_split(_QWEN2_WORDS), bytes_only])
    if rule in _LLAMA3_RULES:
        return pre_tokenizers.Sequence([_split(_LLAMA3_WORDS), bytes_only])
    raise fields.refuse("tokenizer.ggml.pre", "a way to cut words that is not known")


def _split(words: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(tokenizers.Regex(words), behavior="isolated")


def _merges(fields: ConfigFields) -> list[tuple[str, str]]:
    merges = []
    for merge in fields.texts("tokenizer.ggml.merges"):
        left, space, right = merge.partition(" ")
        if not space:
            raise CheckpointError(f"{fields.where}: the merge {merge!r} is not a pair")
        merges.append((left, right))
    return merges


def _add_special_tokens(
    backend: tokenizers.Tokenizer, tokens: tuple[str, ...], kinds: tuple[float, ...]
) -> None:
    def added(kind: int, *, special: bool) -> list[tokenizers.AddedToken]:
        return [
            tokenizers.AddedToken(token, special=special, normalized=False)
            for token, found in zip(tokens, kinds, strict=False)
            if found == kind
        ]

    backend.add_special_tokens(added(_CONTROL, special=True))
    backend.add_tokens(added(_USER_DEFINED, special=False))


def _named_token(fields: ConfigFields, tokens: tuple[str, ...], name: str) -> str | None:
    field = f"tokenizer.ggml.{name}_token_id"
    if not fields.has(field):
        return None
    token_id = fields.integer(field)
    if not 0 <= token_id < len(tokens):
        raise fields.refuse(field, f"outside the vocabulary of {len(tokens)}")
    return tokens[token_id]
