import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sampler.pages.page_pool import PagePool

NUM_PAGES = 12


class PoolMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.evicted = []
        self.pool = PagePool(num_pages=NUM_PAGES, page_size=4, on_evict=self.evicted.append)
        self.held = []
        self.idle = []

    @precondition(lambda self: self.pool.num_available > 0)
    @rule(near=st.integers(-2, NUM_PAGES + 2))
    def take(self, near):
        page = self.pool.take(near=near)
        assert page not in self.held
        if page in self.idle:
            assert self.evicted[-1] == page
            assert self.idle[0] == page
            self.idle.remove(page)
        self.held.append(page)

    @precondition(lambda self: self.held or self.idle)
    @rule(data=st.data())
    def share(self, data):
        page = data.draw(st.sampled_from(self.held + self.idle))
        self.pool.share(page)
        if page in self.idle:
            self.idle.remove(page)
        self.held.append(page)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), keep=st.booleans())
    def give_back(self, data, keep):
        page = data.draw(st.sampled_from(self.held))
        self.pool.give_back(page, keep=keep)
        self.held.remove(page)
        if keep and page not in self.held:
            self.idle.append(page)

    @rule()
    def drop_idle(self):
        self.pool.drop_idle()
        self.idle.clear()

    @invariant()
    def every_page_is_in_one_state(self):
        assert self.pool.num_held == len(set(self.held))
        assert self.pool.num_idle == len(self.idle)
        assert self.pool.num_free + self.pool.num_idle + self.pool.num_held == NUM_PAGES

    @invariant()
    def owners_are_counted(self):
        assert all(self.pool.owners(page) == self.held.count(page) for page in self.held)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_taking_without_any_page_left_is_an_error():
    pool = PagePool(num_pages=1, page_size=4)
    pool.take(near=0)
    with pytest.raises(RuntimeError, match="no page"):
        pool.take(near=0)


def test_giving_back_twice_is_an_error():
    pool = PagePool(num_pages=2, page_size=4)
    page = pool.take(near=0)
    pool.give_back(page, keep=False)
    with pytest.raises(RuntimeError, match="no owner"):
        pool.give_back(page, keep=False)


def test_a_free_page_cannot_be_shared():
    pool = PagePool(num_pages=2, page_size=4)
    with pytest.raises(RuntimeError, match="free"):
        pool.share(1)


def test_pages_near_each_other_are_preferred():
    pool = PagePool(num_pages=8, page_size=4)
    first = pool.take(near=3)
    assert [first, pool.take(near=first + 1)] == [3, 4]


def test_idle_pages_go_least_recently_used_first():
    evicted = []
    pool = PagePool(num_pages=2, page_size=4, on_evict=evicted.append)
    pages = [pool.take(near=0), pool.take(near=1)]
    pool.give_back(pages[1], keep=True)
    pool.give_back(pages[0], keep=True)
    assert pool.take(near=0) == pages[1]
    assert evicted == [pages[1]]


@given(taken=st.sets(st.integers(0, 15)), length=st.integers(1, 20))
def test_a_run_is_found_where_there_is_one(taken, length):
    pool = PagePool(num_pages=16, page_size=4)
    for page in taken:
        pool.take(near=page)
    free = [page not in taken for page in range(16)]
    exists = any(all(free[i : i + length]) for i in range(16 - length + 1))
    start = pool.find_run(length)
    found = start + length <= 16 and all(free[start : start + length])
    assert found == exists


def test_runs_found_one_after_the_other_lie_apart():
    pool = PagePool(num_pages=16, page_size=4)
    first = pool.take(near=pool.find_run(4))
    second = pool.take(near=pool.find_run(4))
    assert abs(second - first) >= 4


@pytest.mark.parametrize(("num_pages", "page_size"), [(0, 16), (4, 0)])
def test_sizes_below_one_are_refused(num_pages, page_size):
    with pytest.raises(ValueError, match="at least 1"):
        PagePool(num_pages=num_pages, page_size=page_size)
