"""What a model thinks before it answers, told from the answer by the marks of its chat template."""

from dataclasses import dataclass

from server.calls.marks import overlap


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """What stands before and behind a model's reasoning."""

    opening: str
    closing: str


# Qwen3, DeepSeek, GLM, Nemotron and most others; Mistral; Seed-OSS.
KNOWN_MARKS = (
    ReasoningMarks("<think>", "</think>"),
    ReasoningMarks("[THINK]", "[/THINK]"),
    ReasoningMarks("<seed:think>", "</seed:think>"),
)


@dataclass(frozen=True, slots=True)
class ReasoningRules:
    """How to tell an answer's reasoning.

    begins_inside: the prompt ends with the opening mark
    is_shown:      False drops the reasoning
    """

    marks: ReasoningMarks
    begins_inside: bool
    is_shown: bool = True


@dataclass(frozen=True, slots=True)
class ReasoningPart:
    """A piece of the reasoning."""

    text: str


def marks_of(template_source: str) -> ReasoningMarks | None:
    """The marks that a chat template knows; None where the model does not reason apart."""
    return next((marks for marks in KNOWN_MARKS if marks.closing in template_source), None)


def rules_of(
    template_source: str, prompt_end: str, *, is_shown: bool = True
) -> ReasoningRules | None:
    """How to read an answer behind a prompt; None where there is no reasoning to come.

    prompt_end: the last characters of the prompt; where they are a closing mark, the template has
                turned reasoning off
    """
    marks = marks_of(template_source)
    end = prompt_end.rstrip()
    if marks is None or end.endswith(marks.closing):
        return None
    return ReasoningRules(marks, end.endswith(marks.opening), is_shown)


class ReasoningReader:
    """Takes an answer's text as it comes and tells its reasoning from the rest.

    Held back are what may be the beginning of a mark, and blank text around the marks. Reasoning
    that never ends is reasoning to the end of the answer.
    """

    def __init__(self, rules: ReasoningRules) -> None:
        self._rules = rules
        self._held = ""
        self._is_inside = rules.begins_inside
        self._is_behind = False
        # Blank text is dropped until the first letter of reasoning, and of the answer.
        self._has_text = False

    def feed(self, text: str) -> list[str | ReasoningPart]:
        """Reasoning and answer, as far as they can be told by now."""
        self._held += text
        parts: list[str | ReasoningPart] = []
        if not self._is_inside and not self._is_behind:
            self._begin()
        if self._is_inside:
            self._think(parts)
        if self._is_behind:
            self._answer(parts)
        return parts

    def finish(self) -> list[str | ReasoningPart]:
        """What was held back until the end of the answer."""
        held, self._held = self._held, ""
        if self._is_inside:
            return self._shown(held.rstrip())
        return [held] if held.strip() or (held and not self._is_behind) else []

    def _begin(self) -> None:
        """Find out whether the answer begins with the opening mark."""
        opening = self._rules.marks.opening
        beginning = self._held.lstrip()
        if beginning.startswith(opening):
            self._held, self._is_inside = beginning[len(opening) :], True
        elif not opening.startswith(beginning):
            self._is_behind = self._has_text = True

    def _think(self, parts: list[str | ReasoningPart]) -> None:
        closing = self._rules.marks.closing
        before, mark, after = self._held.partition(closing)
        if mark:
            self._is_inside, self._is_behind = False, True
            self._held = after
            parts += self._shown(before.rstrip())
            self._has_text = False
            return
        thought = before[: len(before) - overlap(before, closing)].rstrip()
        self._held = before[len(thought) :]
        parts += self._shown(thought)

    def _shown(self, text: str) -> list[str | ReasoningPart]:
        if not self._has_text:
            text = text.lstrip()
        self._has_text = self._has_text or bool(text)
        return [ReasoningPart(text)] if text and self._rules.is_shown else []

    def _answer(self, parts: list[str | ReasoningPart]) -> None:
        if not self._has_text:
            self._held = self._held.lstrip()
        if self._held:
            self._has_text = True
            parts.append(self._held)
            self._held = ""
