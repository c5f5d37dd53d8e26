import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sampler.pages.prefix_cache import PrefixCache


def register_text(cache, tokens, first_page=0, sharing=1):
    parent = cache.root(sharing)
    index = 0
    while cache.covers(index, sharing) <= len(tokens):
        parent = cache.key(parent, tokens, index, sharing)
        cache.register(parent, first_page + index)
        index += 1
    return index


def text(*ids):
    return np.array(ids, dtype=np.int32)


def test_a_text_is_found_up_to_the_first_difference():
    cache = PrefixCache(page_size=2)
    register_text(cache, text(1, 2, 3, 4, 5, 6))
    pages, _ = cache.match(text(1, 2, 3, 4, 9, 6), 1)
    assert pages == [0, 1]


def test_the_same_page_after_another_beginning_is_not_found():
    cache = PrefixCache(page_size=2)
    register_text(cache, text(1, 2, 3, 4))
    assert cache.match(text(7, 8, 3, 4), 1)[0] == []


def test_only_whole_pages_are_found():
    cache = PrefixCache(page_size=4)
    register_text(cache, text(1, 2, 3, 4, 5, 6))
    assert cache.match(text(1, 2, 3, 4, 5, 6), 1)[0] == [0]


def test_a_forgotten_page_is_not_found():
    cache = PrefixCache(page_size=2)
    register_text(cache, text(1, 2, 3, 4))
    cache.forget(1)
    assert cache.match(text(1, 2, 3, 4), 1)[0] == [0]
    assert not cache.holds(1)


def test_the_first_page_of_a_key_stays():
    cache = PrefixCache(page_size=2)
    register_text(cache, text(1, 2))
    register_text(cache, text(1, 2), first_page=5)
    assert cache.match(text(1, 2), 1)[0] == [0]
    assert not cache.holds(5)


def test_block_lengths_and_salts_keep_caches_apart():
    roots = {
        PrefixCache(page_size=4).root(length, salt)
        for length in (1, 4, 8)
        for salt in ("", "tenant")
    }
    assert len(roots) == 6


def test_a_page_inside_a_block_is_keyed_to_the_end_of_the_block():
    cache = PrefixCache(page_size=4)
    assert [cache.covers(index, 8) for index in range(3)] == [8, 8, 16]
    register_text(cache, text(1, 2, 3, 4, 5, 6, 7, 8), sharing=8)
    assert cache.match(text(1, 2, 3, 4, 5, 6, 7, 9), 8)[0] == []
    assert cache.match(text(1, 2, 3, 4, 5, 6, 7, 8), 8)[0] == [0, 1]


def test_a_block_across_two_pages_is_keyed_with_both():
    cache = PrefixCache(page_size=4)
    assert [cache.covers(index, 6) for index in range(2)] == [6, 12]


def test_positions_are_part_of_an_any_order_key():
    cache = PrefixCache(page_size=2)
    ranked = np.array([[5, 0], [6, 1]], dtype=np.int32)
    register_text(cache, ranked)
    assert cache.match(ranked, 1)[0] == [0]
    assert cache.match(ranked[:, [0, 0]], 1)[0] == []


@given(
    texts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=6),
    page_size=st.integers(1, 4),
)
def test_what_is_found_is_always_a_true_beginning(texts, page_size):
    cache = PrefixCache(page_size=page_size)
    content = {}
    next_page = 0
    for ids in texts:
        tokens = text(*ids)
        pages, parent = cache.match(tokens, 1)
        assert [t for page in pages for t in content[page]] == ids[: len(pages) * page_size]
        for index in range(len(pages), len(ids) // page_size):
            parent = cache.key(parent, tokens, index, 1)
            cache.register(parent, next_page)
            content[next_page] = ids[index * page_size : (index + 1) * page_size]
            next_page += 1
