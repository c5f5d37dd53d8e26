"""`WaitingQueue`: requests that have no seat yet, most urgent first."""

import heapq
from dataclasses import dataclass, field

from sampler.border.request import Request


@dataclass(frozen=True, slots=True, order=True)
class WaitingRequest:
    """A request in line: by priority (lower first), then by arrival."""

    priority: int
    number: int
    request: Request = field(compare=False)


class WaitingQueue:
    """A priority queue from which a cancelled request can be taken at any time."""

    def __init__(self) -> None:
        self._heap: list[WaitingRequest] = []
        self._waiting: dict[str, WaitingRequest] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, request: Request) -> None:
        """Put a request in line; raises ValueError when its id is there already."""
        if request.id in self._waiting:
            raise ValueError(f"a request with the id {request.id!r} is waiting already")
        entry = WaitingRequest(request.priority, self._number, request)
        self._number += 1
        self._waiting[request.id] = entry
        heapq.heappush(self._heap, entry)

    def first(self) -> WaitingRequest | None:
        """The most urgent request, which stays in line."""
        while self._heap and self._waiting.get(self._heap[0].request.id) is not self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None

    def pop(self) -> WaitingRequest:
        """Take the most urgent request out; raises IndexError when nobody waits."""
        entry = self.first()
        if entry is None:
            raise IndexError("nobody waits")
        heapq.heappop(self._heap)
        del self._waiting[entry.request.id]
        return entry

    def remove(self, request_id: str) -> Request | None:
        """Take a request out wherever it stands, or None when it does not wait."""
        entry = self._waiting.pop(request_id, None)
        return None if entry is None else entry.request
