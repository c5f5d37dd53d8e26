"""Deltas to text: the same answer for every cut of the same tokens."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sampler import Delta, FinishReason
from server.text.answer_text import AnswerText, TextRules, first_stop, fold, held_back
from tests.server.scripted_engine import EOS, byte_tokenizer, logprob

TOKENIZER = byte_tokenizer()


def _pieces(token_ids, cuts, rules, finish=FinishReason.LENGTH):
    text = AnswerText(TOKENIZER, rules, (EOS,))
    bounds = [0, *sorted(cuts), len(token_ids)]
    spans = list(pairwise(bounds))
    return [
        text.add(
            Delta(
                "r",
                token_ids=tuple(token_ids[start:stop]),
                logprobs=tuple(logprob(token_id) for token_id in token_ids[start:stop]),
                finish=finish if number == len(spans) - 1 else None,
            )
        )
        for number, (start, stop) in enumerate(spans)
    ]


@given(
    st.text(alphabet="abé€😀", max_size=12),
    st.lists(st.integers(0, 48), max_size=6),
    st.lists(st.text(alphabet="abé€", min_size=1, max_size=3), max_size=3),
    st.integers(0, 4),
    st.booleans(),
)
def test_every_cut_gives_the_same_answer(text, cuts, stops, min_tokens, include_stop):
    token_ids = list(text.encode())
    rules = TextRules(tuple(stops), include_stop=include_stop, min_tokens=min_tokens)
    whole = fold(_pieces(token_ids, [], rules))
    cut = fold(_pieces(token_ids, [min(cut, len(token_ids)) for cut in cuts], rules))
    assert cut == whole


@given(
    st.text(alphabet="abé€😀", max_size=12),
    st.lists(st.text(alphabet="abé€", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_the_text_is_cut_at_the_first_stop_that_completes(text, stops):
    answer = fold(_pieces(list(text.encode()), [], TextRules(tuple(stops))))
    assert answer.text == _cut_by_characters(text, stops)
    assert (answer.stop_reason is None) == (answer.text == text)


def _cut_by_characters(text, stops):
    """Grow the text character by character until a stop string stands in it."""
    for length in range(len(text) + 1):
        found = [text[:length].find(stop) for stop in stops if stop in text[:length]]
        if found:
            return text[: min(found)]
    return text


@given(st.text(alphabet="abé€", max_size=8), st.lists(st.integers(0, 30), max_size=4))
def test_tokens_lie_side_by_side_under_the_text(text, cuts):
    token_ids = list(text.encode())
    answer = fold(_pieces(token_ids, [min(cut, len(token_ids)) for cut in cuts], TextRules()))
    stops = [token.stop for token in answer.tokens]
    assert [token.token_id for token in answer.tokens] == token_ids
    assert [token.start for token in answer.tokens] == [0, *stops][: len(token_ids)]
    assert answer.num_tokens == len(token_ids)


def test_bytes_that_never_become_a_character_are_replaced_at_the_end():
    answer = fold(_pieces([0x61, 0xE2, 0x82], [1, 2], TextRules()))
    assert answer.text == "a\ufffd"


def test_a_character_is_never_split():
    pieces = _pieces(list("€".encode()), [1, 2], TextRules())
    assert [piece.text for piece in pieces] == ["", "", "€"]


def test_tokens_of_a_stop_string_count_but_are_not_shown():
    answer = fold(_pieces(list(b"abSTOPcd"), [3], TextRules(("STOP",))))
    assert answer.text == "ab"
    assert [token.token_id for token in answer.tokens] == list(b"ab")
    assert answer.num_tokens == len("abSTOP")


def test_a_finished_answer_takes_no_more():
    text = AnswerText(TOKENIZER, TextRules(("b",)), (EOS,))
    first = text.add(Delta("r", token_ids=tuple(b"ab")))
    second = text.add(Delta("r", token_ids=tuple(b"cd"), finish=FinishReason.LENGTH))
    assert (first.text, first.finish, first.stop_reason) == ("a", FinishReason.STOP, "b")
    assert (second.text, second.finish) == ("", None)


def test_the_earliest_and_then_the_longest_stop_wins():
    assert first_stop("xabc", ["bc", "ab", "abc"]) == "abc"
    assert first_stop("xyz", ["ab"]) is None


def test_only_what_may_become_a_stop_string_is_held_back():
    assert held_back("say ST", ["STOP"]) == 2
    assert held_back("say", ["STOP", "y!"]) == 1
    assert held_back("say", ["STOP"]) == 0
