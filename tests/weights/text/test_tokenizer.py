"""Text to tokens and back, whole and as it arrives."""

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from weights import CheckpointError, Detokenizer, Tokenizer
from weights.text.tokenizer import Spelling, read_tokenizer_json

_TEXTS = [
    "Hello, world!",
    "naïve café — ✓",
    "日本語のテキスト",
    "👩‍👩‍👧‍👦 and 🇫🇷",
    "tabs\tand\nlines\r\n",
    "  two  spaces ",
    "1234567890",
    "",
]


def byte_tokenizer(added=("<|end|>",)):
    """One token a byte, in GPT-2's spelling, and special tokens after them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in added])
    return Tokenizer(backend, spelling=Spelling.BYTES, eos_token=added[0])


def metaspace_tokenizer():
    pieces = [
        "<unk>",
        "\u2581Hello",
        "\u2581world",
        "ly",
        *[f"<0x{byte:02X}>" for byte in range(256)],
    ]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return read_tokenizer_json(backend.to_str(), where="here")


TOKENIZER = byte_tokenizer()


@pytest.mark.parametrize("text", _TEXTS)
def test_text_survives_the_round_trip(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
    assert b"".join(map(TOKENIZER.token_bytes, ids)) == text.encode()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.integers(1, 5))
def test_stream_concatenates_to_the_whole(text, stride):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    stream = Detokenizer(TOKENIZER)
    pieces = [stream.push(ids[at : at + stride]) for at in range(0, len(ids), stride)]
    assert "".join([*pieces, stream.finish()]) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(st.binary(max_size=30))
def test_stream_of_any_bytes_gives_what_decoding_them_gives(data):
    ids = [TOKENIZER.token_id(letter) for letter in _letters(data)]
    stream = Detokenizer(TOKENIZER)
    streamed = "".join(stream.push([token]) for token in ids) + stream.finish()
    assert streamed == data.decode("utf-8", errors="replace")
    assert streamed == TOKENIZER.decode(ids, skip_special_tokens=True)


def _letters(data):
    letter_of = {TOKENIZER.token_bytes(i): TOKENIZER.token_text(i) for i in range(256)}
    return [letter_of[bytes([byte])] for byte in data]


def test_half_a_character_is_held_back():
    ids = TOKENIZER.encode("é", add_special_tokens=False)
    stream = Detokenizer(TOKENIZER)
    assert stream.push(ids[:1]) == ""
    assert stream.push(ids[1:]) == "é"
    assert stream.finish() == ""


def test_half_a_character_at_the_end_is_replaced():
    ids = TOKENIZER.encode("a😀", add_special_tokens=False)
    stream = Detokenizer(TOKENIZER)
    assert stream.push(ids[:-1]) == "a"
    assert stream.finish() == "\ufffd"


def test_special_tokens_are_left_out_or_spelled():
    ids = TOKENIZER.encode("a<|end|>b", add_special_tokens=False)
    assert TOKENIZER.eos_token_id in ids
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "ab"
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == "a<|end|>b"
    assert Detokenizer(TOKENIZER).push(ids) == "ab"
    assert Detokenizer(TOKENIZER, skip_special_tokens=False).push(ids) == "a<|end|>b"


def test_ids_without_a_token_stand_for_nothing():
    assert TOKENIZER.vocab_size == 257
    assert TOKENIZER.token_bytes(100_000) == b""
    assert TOKENIZER.token_bytes(-1) == b""
    assert TOKENIZER.token_text(-1) is None


def test_lone_surrogates_are_refused():
    with pytest.raises(ValueError, match="surrogate"):
        TOKENIZER.encode("\ud800", add_special_tokens=False)


def test_metaspace_and_byte_tokens_are_spelled():
    tokenizer = metaspace_tokenizer()
    ids = [
        tokenizer.token_id(piece) for piece in ["\u2581Hello", "\u2581world", "<0xC3>", "<0xA9>"]
    ]
    assert tokenizer.token_bytes(ids[0]) == b" Hello"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Hello worldé"
    assert Detokenizer(tokenizer).push(ids) == " Hello worldé"
    assert Detokenizer(tokenizer, continues_text=False).push(ids) == "Hello worldé"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "Nothing"}}'])
def test_broken_tokenizer_file_is_one_sentence(content):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is no readable tokenizer"):
        read_tokenizer_json(content, where="tokenizer.json")


def test_padding_and_truncation_of_the_file_are_switched_off():
    backend = tokenizers.Tokenizer.from_str(_backend_json())
    backend.enable_truncation(2)
    backend.enable_padding(length=10)
    tokenizer = read_tokenizer_json(backend.to_str(), where="here")
    assert len(tokenizer.encode("abcd", add_special_tokens=True)) == 4


def _backend_json():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return json.dumps(json.loads(backend.to_str()))
