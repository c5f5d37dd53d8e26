"""`Constraint`: which tokens may come next in an answer that is held to a grammar.

The frontier of an answer is its first position without a token. Only there is the set of
allowed tokens known exactly; a draft further right counts only if everything before it is
allowed, so a grammar is never applied to positions one by one. Parsing is llguidance's.
"""

from collections.abc import Sequence

import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from sampler.border.errors import RequestError
from sampler.border.request import GrammarKind, GrammarSpec
from weights import Tokenizer

_COMPLAINT_CHARACTERS = 500


class Constraint:
    """The state of one answer's grammar.

    num_consumed: answer tokens taken so far
    """

    def __init__(self, matcher: LLMatcher, *, vocabulary_size: int) -> None:
        self._matcher = matcher
        self._mask = llguidance.numpy.allocate_token_bitmask(1, vocabulary_size)
        self.num_consumed = 0

    @property
    def is_done(self) -> bool:
        """Whether nothing can follow what was taken."""
        return bool(self._matcher.is_stopped())

    @property
    def failure(self) -> str | None:
        """Why nothing that the grammar allows can follow, though it is not finished either."""
        if not self.is_done or self._matcher.is_accepting():
            return None
        if str(self._matcher.stop_reason()).startswith("NoExtension"):
            return "it allows no answer"
        return str(self._matcher.get_error()).partition("\n")[0][:_COMPLAINT_CHARACTERS]

    def mask(self) -> NDArray[np.int32]:
        """Tokens that may come next, as bits [ceil(V / 32)] int32."""
        if self.is_done:
            return np.zeros(self._mask.shape[1], dtype=np.int32)
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask, 0)
        mask: NDArray[np.int32] = self._mask[0].astype(np.int32, copy=True)
        return mask

    def masks_along(self, tokens: Sequence[int]) -> list[NDArray[np.int32]]:
        """What may come after each beginning of `tokens`, as far as they are allowed themselves.

        The first is what may come next; nothing is taken.
        """
        masks = [self.mask()]
        taken = 0
        for token in tokens:
            if self.is_done or self._matcher.try_consume_tokens([token]) != 1:
                break
            taken += 1
            if self.is_done:
                break
            masks.append(self.mask())
        if taken:
            self._matcher.rollback(taken)
        return masks

    def take_forced(self, most: int, *, but: int | None) -> list[int]:
        """Take the tokens that must come next, at most so many, and none from `but` on."""
        if self.is_done:
            return []
        forced: list[int] = self._matcher.compute_ff_tokens()[:most]
        if but in forced:
            forced = forced[: forced.index(but)]
        return forced[: self.take(forced)]

    def take(self, tokens: Sequence[int]) -> int:
        """Take the leading tokens that are allowed; how many they are."""
        count = 0
        for token in tokens:
            if self.is_done or self._matcher.try_consume_tokens([token]) != 1:
                break
            count += 1
        self.num_consumed += count
        return count


class Grammars:
    """Makes constraints for the vocabulary of one model."""

    def __init__(
        self, tokenizer: Tokenizer, *, vocabulary_size: int, eos_ids: Sequence[int]
    ) -> None:
        self._vocabulary_size = vocabulary_size
        words = _Words(tokenizer, eos_ids, vocabulary_size=vocabulary_size)
        wrapper = TokenizerWrapper(words)
        self._tokenizer = LLTokenizer(wrapper, n_vocab=vocabulary_size, eos_token=list(eos_ids))

    def constraint(self, spec: GrammarSpec) -> Constraint:
        """Start an answer; raises RequestError when the grammar does not compile."""
        matcher = LLMatcher(self._tokenizer, _source(spec))
        if matcher.is_error():
            complaint = matcher.get_error().splitlines()[0][:_COMPLAINT_CHARACTERS]
            raise RequestError(
                f"the grammar does not compile: {complaint}", field="response_format"
            )
        constraint = Constraint(matcher, vocabulary_size=self._vocabulary_size)
        # A grammar that allows nothing at all is only found out when it is asked.
        constraint.mask()
        if constraint.failure is not None:
            raise RequestError(
                f"the grammar cannot be kept: {constraint.failure}", field="response_format"
            )
        return constraint


class _Words:
    """A vocabulary in the shape that llguidance reads."""

    def __init__(
        self, tokenizer: Tokenizer, eos_ids: Sequence[int], *, vocabulary_size: int
    ) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(eos_ids, default=0)
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids = sorted(tokenizer.special_token_ids)
        # Networks have rows that stand for no token; an id past the list would end the parser.
        self.tokens = [tokenizer.token_bytes(i) for i in range(vocabulary_size)]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


def _source(spec: GrammarSpec) -> str:
    match spec.kind:
        case GrammarKind.JSON_SCHEMA:
            source: str = LLMatcher.grammar_from_json_schema(spec.text)
        case GrammarKind.REGEX:
            source = LLMatcher.grammar_from_regex(spec.text)
        case GrammarKind.LARK:
            source = LLMatcher.grammar_from_lark(spec.text)
    return source
