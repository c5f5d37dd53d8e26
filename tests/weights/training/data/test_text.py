import pytest
import torch

from tests.weights.training.runs import write_text
from weights.training.data.text import (
    END_OF_TEXT_ID,
    Windows,
    encode,
    read_corpus,
    text_files,
    train_vocabulary,
)


def test_a_document_is_trained_on_or_held_out(tmp_path):
    corpus = read_corpus([write_text(tmp_path / "text")])
    assert len(corpus.trained) + len(corpus.held_out) == 200
    assert not set(corpus.trained) & set(corpus.held_out)
    assert corpus.held_out


def test_a_long_document_is_cut_at_line_ends(tmp_path):
    lines = [
        f"line {number} of a long book that has no form feeds in it" for number in range(60_000)
    ]
    (tmp_path / "book.txt").write_text("\n".join(lines))
    corpus = read_corpus([tmp_path / "book.txt"])
    found = "\n".join(corpus.trained + corpus.held_out).splitlines()
    assert sorted(found) == sorted(lines)
    assert max(map(len, corpus.trained)) <= 20_000


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff\xfe\xfa", "not UTF-8"), (b"too little", "held out")]
)
def test_text_that_cannot_be_used_is_refused(tmp_path, content, message):
    (tmp_path / "one.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_corpus([tmp_path])


def test_paths_without_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        text_files([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"no \.txt file"):
        text_files([tmp_path])


def test_tokens_of_documents_decode_to_them_and_end_with_the_end_of_text(tmp_path):
    corpus = read_corpus([write_text(tmp_path / "text")])
    tokenizer = train_vocabulary(corpus.trained, vocab_size=300)
    tokens = encode(corpus.held_out[:2], tokenizer)
    ends = (tokens == END_OF_TEXT_ID).nonzero().flatten().tolist()
    assert len(ends) == 2
    assert tokenizer.decode(tokens[: ends[0]].tolist()) == corpus.held_out[0]
    assert tokenizer.get_vocab_size() == 300


def test_a_batch_depends_on_seed_and_step_alone():
    tokens = torch.arange(500, dtype=torch.int32)
    windows = Windows(tokens, 8, 4, seed=1)
    again = Windows(tokens, 8, 4, seed=1)
    assert torch.equal(windows.batch(7), again.batch(7))
    assert not torch.equal(windows.batch(7), windows.batch(8))
    assert not torch.equal(windows.batch(7), Windows(tokens, 8, 4, seed=2).batch(7))
    assert torch.equal(windows.batch(3).diff(dim=1), torch.ones(4, 7, dtype=torch.int64))


def test_windows_in_order_are_spread_over_the_text():
    windows = Windows(torch.arange(100, dtype=torch.int32), 10, 1, seed=1)
    assert windows.all_in_order(at_most=100).flatten().tolist() == list(range(100))
    assert windows.all_in_order(at_most=2)[:, 0].tolist() == [0, 90]


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="7 tokens, but a window 8"):
        Windows(torch.zeros(7, dtype=torch.int32), 8, 1, seed=1)
