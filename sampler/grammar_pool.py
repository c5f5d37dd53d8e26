"""`GrammarPool`: grammars compile beside the engine's loop, once per distinct text.

While a grammar compiles its request waits here, without a seat and without pages; the loop goes
on. llguidance lets other threads run while it compiles.
"""

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from sampler.border.request import GrammarSpec, Request
from sampler.seats.constraint import CompiledGrammar, Grammars

# Compiled grammars that are kept; texts have at most 64 Ki characters each.
_CAPACITY = 256
# One: compiling takes no more than a core from the steps of the others.
_THREADS = 1


@dataclass(frozen=True, slots=True)
class Compiled:
    """A request whose grammar is compiled, or why it cannot be."""

    request: Request
    grammar: CompiledGrammar | None
    error: Exception | None = None


class GrammarPool:
    """Compiles, remembers the latest grammars, and holds the requests that wait for one."""

    def __init__(self, grammars: Grammars, *, capacity: int = _CAPACITY) -> None:
        self._grammars = grammars
        self._capacity = capacity
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="grammar")
        # Compiled or being compiled, the latest used last.
        self._kept: OrderedDict[GrammarSpec, Future[CompiledGrammar]] = OrderedDict()
        self._waiting: dict[str, tuple[Request, Future[CompiledGrammar]]] = {}
        self.num_compiled = 0

    def __len__(self) -> int:
        """Requests that wait for their grammars."""
        return len(self._waiting)

    @property
    def has_compiled(self) -> bool:
        """Whether `take_compiled` has something to give."""
        return any(future.done() for _, future in self._waiting.values())

    def holds(self, request_id: str) -> bool:
        """Whether a request waits here."""
        return request_id in self._waiting

    def add(self, request: Request, spec: GrammarSpec) -> None:
        """Compile the grammar of a request unless it is known; the request waits meanwhile."""
        future = self._kept.get(spec)
        if future is None:
            future = self._threads.submit(self._grammars.compile, spec)
            self._kept[spec] = future
            self.num_compiled += 1
        self._kept.move_to_end(spec)
        self._waiting[request.id] = (request, future)
        self._forget_oldest()

    def remove(self, request_id: str) -> bool:
        """Forget a request; whether it waited here. What nobody wants need not be compiled."""
        found = self._waiting.pop(request_id, None)
        if found is None:
            return False
        request, future = found
        is_wanted = any(other is future for _, other in self._waiting.values())
        if not is_wanted and future.cancel() and request.params.grammar is not None:
            self._kept.pop(request.params.grammar, None)
        return True

    def take_compiled(self) -> Iterator[Compiled]:
        """Requests that need not wait any more, in the order in which they came."""
        ended = [one for one in self._waiting.values() if one[1].done()]
        for request, future in ended:
            del self._waiting[request.id]
            error = future.exception()
            if error is None:
                yield Compiled(request, future.result())
            elif isinstance(error, Exception):
                yield Compiled(request, None, error)
            else:
                raise error

    def _forget_oldest(self) -> None:
        for spec in list(self._kept):
            if len(self._kept) <= self._capacity:
                return
            # What is being compiled is held by those who wait for it, and found by others.
            if self._kept[spec].done():
                del self._kept[spec]
