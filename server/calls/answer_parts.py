"""An answer's text as content and numbered tool calls."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.calls.call_streams import BegunCall, ListedCallsReader, NamedCallReader, Streamed
from server.calls.coded_calls import Schemas
from server.calls.tool_calls import CalledTool, CallReader, ToolStyle, reader_of
from server.schema.tools import NamedChoice


@dataclass(frozen=True, slots=True)
class CallRules:
    """How to read an answer's calls; `is_single` lets only the first one count.

    schemas: of the functions' arguments, by name
    """

    style: ToolStyle
    choice: NamedChoice | str
    is_single: bool
    schemas: Schemas = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CallPart:
    """A call of an answer, numbered from 0; arguments are JSON text."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ArgumentsPart:
    """What follows in the arguments of a call that has begun."""

    index: int
    text: str


StreamedPart = str | CallPart | ArgumentsPart


class PartReader:
    """Takes one answer's text as it comes; without rules all of it is content."""

    def __init__(self, rules: CallRules | None) -> None:
        self._is_single = rules is not None and rules.is_single
        self._reader: CallReader | None = None
        if rules is not None:
            self._reader = reader_of(rules.style, rules.choice, rules.schemas)
        self.num_calls = 0

    def feed(self, text: str) -> list[str | CallPart]:
        """Content and calls that the text completes."""
        if self._reader is None:
            return [text] if text else []
        return self._numbered(self._reader.feed(text))

    def finish(self) -> list[str | CallPart]:
        """What was held back until the end of the answer."""
        return [] if self._reader is None else self._numbered(self._reader.finish())

    def _numbered(self, found: list[str | CalledTool]) -> list[str | CallPart]:
        parts: list[str | CallPart] = []
        for part in found:
            if isinstance(part, str):
                parts.append(part)
            elif not (self._is_single and self.num_calls):
                parts.append(CallPart(self.num_calls, _call_id(), part.name, part.arguments))
                self.num_calls += 1
        return parts


class StreamedPartReader:
    """The same, but that arguments of forced calls are given as they come.

    Calls that the model makes by itself are complete when they are given: before that it is not
    known whether they are calls.
    """

    def __init__(self, rules: CallRules | None) -> None:
        self._is_single = rules is not None and rules.is_single
        self._whole = PartReader(rules)
        self._forced: NamedCallReader | ListedCallsReader | None = None
        if rules is not None and isinstance(rules.choice, NamedChoice):
            self._forced = NamedCallReader(rules.choice.function.name)
        elif rules is not None and rules.choice == "required":
            self._forced = ListedCallsReader()
        self._num_begun = 0

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""
        return self._num_begun if self._forced is not None else self._whole.num_calls

    def feed(self, text: str) -> list[StreamedPart]:
        """Content, calls, and more of their arguments."""
        if self._forced is None:
            return [*self._whole.feed(text)]
        return self._numbered(self._forced.feed(text))

    def finish(self) -> list[StreamedPart]:
        """What was held back until the end of the answer."""
        if self._forced is None:
            return [*self._whole.finish()]
        return self._numbered(self._forced.finish())

    def _numbered(self, found: Sequence[Streamed]) -> list[StreamedPart]:
        parts: list[StreamedPart] = []
        for part in found:
            if isinstance(part, str):
                parts.append(part)
                continue
            self._num_begun += isinstance(part, BegunCall)
            index = self._num_begun - 1
            if index and self._is_single:
                continue
            if isinstance(part, BegunCall):
                parts.append(CallPart(index, _call_id(), part.name, part.arguments))
            else:
                parts.append(ArgumentsPart(index, part.text))
        return parts


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
