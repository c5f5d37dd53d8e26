"""An answer's text as content and numbered tool calls."""

import uuid
from dataclasses import dataclass, field

from server.coded_calls import Schemas
from server.schema.tools import NamedChoice
from server.tools import CalledTool, CallReader, ToolStyle, reader_of


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
                call_id = f"call_{uuid.uuid4().hex[:24]}"
                parts.append(CallPart(self.num_calls, call_id, part.name, part.arguments))
                self.num_calls += 1
        return parts
