"""`PagePool`: which page of the cache is free, idle or held, and by how many sequences.

A page is in exactly one of three states, so that free + idle + held pages = all pages:

* free: holds nothing of use;
* held: one or more sequences own it; with more than one owner nobody writes to it;
* idle: no owner, but its entries are the settled beginning of some text, kept until the room
  is needed (least recently used first).

The pool deals in page numbers only and never sees a tensor.
"""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np


class PagePool:
    """Take, share and give back pages.

    on_evict: called with the number of an idle page that is taken for something else.
    """

    def __init__(
        self, *, num_pages: int, page_size: int, on_evict: Callable[[int], None] | None = None
    ) -> None:
        """Start with every page free; raises ValueError when a size is below 1."""
        if num_pages < 1 or page_size < 1:
            raise ValueError(
                f"num_pages and page_size must be at least 1, got {num_pages} and {page_size}"
            )
        self.num_pages = num_pages
        self.page_size = page_size
        self._on_evict = on_evict
        self._owners = np.zeros(num_pages, dtype=np.int32)
        self._is_free = np.ones(num_pages, dtype=np.bool_)
        self._num_free = num_pages
        self._idle: OrderedDict[int, None] = OrderedDict()
        # Where the search for a run of free pages goes on, so that sequences which start one
        # after the other are laid out apart and each can grow into pages that follow its own.
        self._next_run = 0

    @property
    def num_free(self) -> int:
        """Pages that hold nothing of use."""
        return self._num_free

    @property
    def num_idle(self) -> int:
        """Pages without an owner whose entries may be found again."""
        return len(self._idle)

    @property
    def num_available(self) -> int:
        """Pages that can be taken now: free and idle ones."""
        return self._num_free + len(self._idle)

    @property
    def num_held(self) -> int:
        """Pages that at least one sequence owns."""
        return self.num_pages - self.num_available

    def owners(self, page: int) -> int:
        """How many sequences own the page."""
        return int(self._owners[page])

    def find_run(self, length: int) -> int:
        """Where a run of `length` free pages starts; the best start there is when none is as long.

        Nothing is taken. Sequences whose pages follow each other are read without a gather on
        a CPU, which is all this is for.
        """
        free = np.flatnonzero(self._is_free)
        if free.size == 0:
            return 0
        breaks = np.flatnonzero(np.diff(free) != 1) + 1
        starts = free[np.concatenate(([0], breaks))]
        lengths = np.diff(np.concatenate(([0], breaks, [free.size])))
        # A run that the search pointer lies in counts from there.
        inside = (starts < self._next_run) & (starts + lengths > self._next_run)
        lengths = np.where(inside, starts + lengths - self._next_run, lengths)
        starts = np.where(inside, self._next_run, starts)
        long_enough = np.flatnonzero(lengths >= length)
        if long_enough.size == 0:
            return int(starts[int(lengths.argmax())])
        ahead = long_enough[starts[long_enough] >= self._next_run]
        chosen = int(starts[ahead[0] if ahead.size else long_enough[0]])
        self._next_run = (chosen + length) % self.num_pages
        return chosen

    def take(self, *, near: int) -> int:
        """Take a page for one owner: page `near` if it is free, else any free, else idle one.

        Raises RuntimeError when no page is available: callers look at `num_available` first.
        """
        if self._num_free > 0:
            page = near if 0 <= near < self.num_pages and self._is_free[near] else self._any_free()
            self._is_free[page] = False
            self._num_free -= 1
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            if self._on_evict is not None:
                self._on_evict(page)
        else:
            raise RuntimeError("no page is available")
        self._owners[page] = 1
        return page

    def share(self, page: int) -> None:
        """Add an owner to a held or idle page; raises RuntimeError when the page is free."""
        if self._is_free[page]:
            raise RuntimeError(f"page {page} is free and cannot be shared")
        self._idle.pop(page, None)
        self._owners[page] += 1

    def give_back(self, page: int, *, keep: bool) -> None:
        """Take one owner off the page; the last one leaves it idle if `keep`, else free.

        Raises RuntimeError when nobody owns it.
        """
        if self._owners[page] < 1:
            raise RuntimeError(f"page {page} has no owner to give it back")
        self._owners[page] -= 1
        if self._owners[page] > 0:
            return
        if keep:
            self._idle[page] = None
        else:
            self._is_free[page] = True
            self._num_free += 1

    def drop_idle(self) -> None:
        """Make every idle page free."""
        while self._idle:
            page, _ = self._idle.popitem(last=False)
            if self._on_evict is not None:
                self._on_evict(page)
            self._is_free[page] = True
            self._num_free += 1

    def _any_free(self) -> int:
        ahead = self._is_free[self._next_run :]
        offset = int(ahead.argmax()) if ahead.size else 0
        if ahead.size and ahead[offset]:
            return self._next_run + offset
        return int(self._is_free.argmax())
