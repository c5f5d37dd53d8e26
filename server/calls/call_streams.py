"""Readers of calls that a grammar holds to JSON: their arguments are passed on as they come.

Nothing else can come than what the grammar allows, so that nothing has to be waited for. An answer
that runs out of tokens leaves a call whose arguments are cut.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

# The beginning of a call, up to its arguments, with what ends the call before it.
_BEGIN = re.compile(
    r'[\s,\[}]*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)'
)


@dataclass(frozen=True, slots=True)
class BegunCall:
    """A call whose name is known; more of its arguments' JSON may follow."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class MoreArguments:
    """What follows in the arguments of the call that came last."""

    text: str


Streamed = BegunCall | MoreArguments | str


class NamedCallReader:
    """The whole answer is the arguments of one function."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._has_begun = False

    def feed(self, text: str) -> Sequence[Streamed]:
        """All of the text, at once."""
        if not text:
            return []
        if self._has_begun:
            return [MoreArguments(text)]
        self._has_begun = True
        return [BegunCall(self._name, text)]

    def finish(self) -> Sequence[Streamed]:
        """Nothing was held back."""
        return []


class ListedCallsReader:
    """The answer is a list of objects with `name` and `arguments`, in this order."""

    def __init__(self) -> None:
        self._held = ""
        self._scanner: _ObjectScanner | None = None
        self._has_called = False

    def feed(self, text: str) -> Sequence[Streamed]:
        """What of the calls can be told by now."""
        self._held += text
        parts: list[Streamed] = []
        while self._go_on(parts):
            pass
        return parts

    def finish(self) -> Sequence[Streamed]:
        """The text when no call had begun before it was cut."""
        return [] if self._has_called or not self._held else [self._held]

    def _go_on(self, parts: list[Streamed]) -> bool:
        """Move what is known to `parts`; whether another call may follow."""
        if self._scanner is not None:
            return self._pass_on(parts, None)
        begin = _BEGIN.match(self._held)
        if begin is None:
            return False
        self._held = self._held[begin.end() :]
        self._scanner, self._has_called = _ObjectScanner(), True
        return self._pass_on(parts, str(json.loads(begin[1])))

    def _pass_on(self, parts: list[Streamed], name: str | None) -> bool:
        if self._scanner is None or not self._held:
            return False
        stop = self._scanner.end_of(self._held)
        text = self._held[:stop]
        parts.append(MoreArguments(text) if name is None else BegunCall(name, text))
        if self._scanner.depth:
            self._held = ""
            return False
        self._held, self._scanner = self._held[stop:], None
        return True


class _ObjectScanner:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self.depth = 0
        self._in_string = False
        self._is_escaped = False

    def end_of(self, text: str) -> int:
        """Where the object ends in the text, or the text's own end; `depth` is 0 in the former."""
        for index, character in enumerate(text):
            if self._in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif character == "\\":
                    self._is_escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self.depth += 1
            elif character in "}]":
                self.depth -= 1
                if self.depth == 0:
                    return index + 1
        return len(text)
