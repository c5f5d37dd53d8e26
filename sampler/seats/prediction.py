"""Proposals that no network drafts: known text, and what followed the same words before.

A `Proposer` guesses how one sequence goes on. The guesses ride behind the token that is about to
settle, one row each, and count as far as the model's own draw agrees (`Advance._verify`). So the
answer is the one that `ar` gives whatever is guessed; good guesses only take fewer forwards.

Guesses come from a predicted text that the client sent (OpenAI's `prediction`), and from the
sequence itself (prompt lookup: the tokens that followed the last occurrence of its ending. From:
Saxena 2023, "Prompt Lookup Decoding"; we take the latest occurrence, not the first).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sampler.border.errors import RequestError
from sampler.border.request import Request, SamplingParams
from sampler.state.decoding import Decoding, Lookup, Mode, resolve_decoding
from sampler.state.sequence_table import SequenceTable, Stage
from weights.families import FamilyRule, Settle, Speaks

TokenArray = NDArray[np.int32]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# Tokens of an ending that are looked for, the longest first. Single tokens stand everywhere.
_LONGEST_ENDING = 4
_SHORTEST_ENDING = 2
# Where it takes the place of what a canvas drafted: shorter ones tell less.
_SHORTEST_BESIDE_CANVAS = 3
# Tokens taken in at once at most, which takes some 10 ms: of a longer prompt, the last ones.
_MOST_TAKEN_IN = 8192
# A single token tells the place in a predicted text only so close to where it is expected.
_NEAR = 16
# Guesses of a round: the first, the fewest after failures, and the most.
_FIRST_COUNT = 8
_FEWEST = 2
_MOST_PREDICTED = 32
_MOST_LOOKED_UP = 16
_NOTHING: TokenArray = np.empty(0, dtype=np.int32)
# How often a guess comes true at first, given that those before it did: of a predicted text (0),
# and by the length of the ending, as in 400 answers of the default model. In how many sightings
# that counts, and what stays of each sighting after another round.
_PRIOR_RATES = {0: 0.8, 2: 0.6, 3: 0.67, 4: 0.83}
_PRIOR_SIGHTINGS, _FORGETTING = 8.0, 0.9
_HIGHEST_RATE = 0.99
# A sequence whose guesses are not worth their rows goes back to the prior so far with every step.
_RELAXATION = 0.01


class Endings:
    """Where the runs of tokens of a growing text ended before: prompt lookup in constant time.

    shortest: tokens of an ending that is looked for, at least
    """

    def __init__(self, *, shortest: int = _SHORTEST_ENDING) -> None:
        self._lengths = range(_LONGEST_ENDING, shortest - 1, -1)
        self._places: dict[tuple[int, ...], list[int]] = {}
        self._num_known = 0

    def longest(self, text: TokenArray) -> int:
        """Length of the text's longest ending that occurred before; 0 when none did.

        The text is that of the call before, with or without more behind it.
        """
        self._learn(text)
        ending = text[-_LONGEST_ENDING:].tolist()
        for length in self._lengths:
            if length < text.size and tuple(ending[-length:]) in self._places:
                return length
        return 0

    def find(self, text: TokenArray, *, count: int) -> TokenArray:
        """At most `count` tokens that followed the text's ending where it occurred before.

        The longest ending that occurred decides, by its latest occurrence that `count` tokens
        follow, or else by its first. Empty when none did.
        """
        length = self.longest(text)
        return self.behind(text, length, count=count) if length else _NOTHING

    def behind(self, text: TokenArray, length: int, *, count: int) -> TokenArray:
        """The same for the ending of this length, which occurred before (`longest`)."""
        places = self._places[tuple(text[-length:].tolist())]
        whole = (place for place in reversed(places) if place + count <= text.size)
        start = next(whole, places[0])
        return text[start : start + count]

    def _learn(self, text: TokenArray) -> None:
        """Take in the runs that end before the last token."""
        start = max(self._num_known, text.size - _MOST_TAKEN_IN, 1)
        first = max(start - _LONGEST_ENDING, 0)
        recent = text[first:].tolist()
        for place in range(start, text.size):
            for length in self._lengths:
                if length <= place:
                    run = tuple(recent[place - first - length : place - first])
                    self._places.setdefault(run, []).append(place)
        self._num_known = max(self._num_known, text.size)


def follow(answer: TokenArray, predicted: TokenArray, *, near: int) -> int | None:
    """Where in the predicted text the answer goes on; None when it has left that text.

    near: where it would go on if nothing had been added or left out
    """
    if answer.size == 0:
        return 0
    for length in range(min(_LONGEST_ENDING, answer.size), 0, -1):
        behind = _behind(predicted, answer[-length:])
        distance = np.abs(behind - near)
        if length == 1:
            behind, distance = behind[distance <= _NEAR], distance[distance <= _NEAR]
        if behind.size:
            return int(behind[distance.argmin()])
    return None


def _behind(text: TokenArray, pattern: TokenArray) -> IntArray:
    """Offsets just behind each occurrence of the pattern, in order."""
    num_starts = text.size - pattern.size + 1
    if num_starts < 1:
        return np.empty(0, dtype=np.int64)
    matches = np.ones(num_starts, dtype=np.bool_)
    for index, token in enumerate(pattern.tolist()):
        matches &= text[index : index + num_starts] == token
    return np.flatnonzero(matches) + pattern.size


class Proposer:
    """Guesses for one sequence: more at a time while they come true, fewer while they do not.

    predicted:  token ids that the answer may repeat
    endings:    of the sequence's own text, where that is searched too
    most:       guesses of a round at most
    num_accepted, num_rejected: guesses from the predicted text that came true, or did not
    """

    def __init__(
        self,
        *,
        predicted: Sequence[int],
        endings: Endings | None = None,
        most: int | None = None,
    ) -> None:
        self._predicted = np.array(predicted, dtype=np.int32)
        self._endings = endings
        self._most = most or (_MOST_PREDICTED if predicted else _MOST_LOOKED_UP)
        self._count = min(_FIRST_COUNT, self._most)
        # By kind (`_PRIOR_RATES`): guesses that were put to the test, and that came true.
        self._kind = 0
        self._num_tested = dict.fromkeys(_PRIOR_RATES, _PRIOR_SIGHTINGS)
        self._num_true = {kind: rate * _PRIOR_SIGHTINGS for kind, rate in _PRIOR_RATES.items()}
        # Where the answer was last found in the predicted text, and how long it was then.
        self._place, self._length = 0, 0
        self._num_offered = 0
        self._is_predicted = False
        self.num_accepted = 0
        self.num_rejected = 0

    @property
    def is_pending(self) -> bool:
        """Whether guesses wait to be run."""
        return self._num_offered > 0

    def propose(
        self, text: TokenArray, *, prompt_length: int, most: int, price: float = 0.0
    ) -> TokenArray:
        """At most `most` guesses of how the text goes on.

        price: tokens that a row must be expected to gain
        """
        most = min(self._count, most)
        guesses, self._kind = _NOTHING, 0
        if self._predicted.size:
            count = min(most, self._num_worth(0, price))
            guesses = self._from_prediction(text[prompt_length:], count)
        self._is_predicted = guesses.size > 0
        if self._endings is not None and not self._is_predicted and most > 0:
            self._kind = self._endings.longest(text)
            count = min(most, self._num_worth(self._kind, price)) if self._kind else 0
            guesses = self._endings.behind(text, self._kind, count=count) if count else _NOTHING
        self._num_offered = guesses.size
        return guesses

    def observe(self, *, num_confirmed: int) -> None:
        """The guesses were run, and so many of the first ones came true."""
        offered, self._num_offered = self._num_offered, 0
        if offered == 0:
            return
        tested, kind = min(num_confirmed + 1, offered), self._kind
        self._num_tested[kind] = _FORGETTING * self._num_tested[kind] + tested
        self._num_true[kind] = _FORGETTING * self._num_true[kind] + num_confirmed
        if num_confirmed >= offered:
            self._count = min(2 * self._count, self._most)
        else:
            self._count = min(max(num_confirmed + 1, _FEWEST), self._most)
        if self._is_predicted:
            self.num_accepted += num_confirmed
            self.num_rejected += offered - num_confirmed

    def _num_worth(self, kind: int, price: float) -> int:
        """How many guesses are likely enough to come true, given that each needs all before it."""
        if price <= 0:
            return self._most
        rate = min(self._num_true[kind] / self._num_tested[kind], _HIGHEST_RATE)
        if rate >= price:
            return int(math.log(price) / math.log(rate))
        # Too seldom: it is tried again when the text may have changed.
        prior = _PRIOR_RATES[kind] * self._num_tested[kind]
        self._num_true[kind] += _RELAXATION * (prior - self._num_true[kind])
        return 0

    def _from_prediction(self, answer: TokenArray, count: int) -> TokenArray:
        if count < 1:
            return _NOTHING
        near = self._place + answer.size - self._length
        start = follow(answer, self._predicted, near=near)
        if start is None:
            return _NOTHING
        self._place, self._length = start, answer.size
        return self._predicted[start : start + count]


def proposer_for(request: Request, decoding: Decoding) -> Proposer | None:
    """The proposer of a request that has anything to guess from; decoding is the resolved one."""
    if decoding.lookup is not Lookup.ALONE:
        return Proposer(predicted=request.prediction) if request.prediction else None
    return Proposer(
        predicted=request.prediction,
        endings=endings_for(decoding),
        most=request.params.decoding.width,
    )


def endings_for(decoding: Decoding) -> Endings:
    """What a sequence's repetitions are looked up in."""
    is_beside = decoding.lookup is Lookup.BESIDE
    return Endings(shortest=_SHORTEST_BESIDE_CANVAS if is_beside else _SHORTEST_ENDING)


def check_prediction(
    prediction: Sequence[int], params: SamplingParams, rule: FamilyRule, *, context_length: int
) -> None:
    """Raise RequestError for a prediction that cannot be verified, or that no answer can hold."""
    if not prediction:
        return
    speaks_of_next = rule.settled_speaks_of is Speaks.NEXT
    if rule.settle is not Settle.CAUSAL or not speaks_of_next:
        raise RequestError(
            "prediction cannot be verified: this model has no distribution of the next token",
            field="prediction",
        )
    decoding = resolve_decoding(params, rule)
    if decoding.by_ratio:
        raise RequestError(
            "prediction cannot be verified when decoding.verification is ratio", field="prediction"
        )
    if decoding.mode is Mode.DIFFUSION:
        raise RequestError(
            "prediction cannot be verified when decoding.mode is diffusion", field="prediction"
        )
    if len(prediction) > context_length:
        raise RequestError(
            f"prediction may have at most {context_length} tokens, got {len(prediction)}",
            field="prediction",
        )


def begin_proposals(
    table: SequenceTable,
    proposers: Sequence[tuple[int, Proposer]],
    *,
    budget_rows: int,
    prices: FloatArray,
) -> list[int]:
    """Put guesses behind the newest token of sequences that are about to draw the next one.

    proposers: (seat, its proposer) of running sequences, most urgent first
    budget_rows: guesses of all of them at most
    prices:    [seats], tokens that a row must be expected to gain

    Returns the seats whose next step verifies guesses; they draft nothing meanwhile.
    """
    left = budget_rows
    guessed = []
    for seat, proposer in proposers:
        final = int(table.final[seat])
        if proposer.is_pending:
            guessed.append(seat)
            continue
        # What a branch of latents has proposed gives way; drafts of a round of its own do not.
        waits = table.stage[seat] == Stage.SETTLE or table.latents is not None
        if not waits or table.settled[seat] != final - 1:
            continue
        # Behind the last guess one more token is drawn.
        most = min(left, int(table.limit[seat]) - 1 - final)
        prompt_length = int(table.prompt_length[seat])
        guesses = proposer.propose(
            table.tokens[seat, :final],
            prompt_length=prompt_length,
            most=most,
            price=float(prices[seat]),
        )
        if guesses.size == 0:
            continue
        table.tokens[seat, final : final + guesses.size] = guesses
        # No network has said how probable they are.
        table.confidence[seat, final : final + guesses.size] = 0.0
        table.canvas_stop[seat] = final + guesses.size
        table.stage[seat] = Stage.VERIFY
        # No round of drafts is under way.
        table.round_width[seat] = table.num_drafts[seat] = 0
        guessed.append(seat)
        left -= guesses.size
    return guessed
