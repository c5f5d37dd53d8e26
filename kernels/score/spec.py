"""What `score_rows` is asked for each row, and what it answers.

Shapes: R rows, V vocabulary entries, B adjusted entries of all rows, M bitmask rows, d_z latent
width.
"""

from dataclasses import dataclass

from torch import Tensor

MAX_NUM_TOP = 64


@dataclass(frozen=True, slots=True)
class SparseAdjust:
    """Penalties and bias: a few (token id, numbers) per row, no id twice in a row.

    row_starts: [R + 1] int32, the entries of row r are `row_starts[r]:row_starts[r + 1]`
    token_ids:  [B] int32
    penalties:  [B] float32 > 0, repetition: divides a positive logit, multiplies a negative one
    values:     [B] float32, added after the penalty
    """

    row_starts: Tensor
    token_ids: Tensor
    penalties: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class AllowedTokens:
    """Which tokens a row may take: rows of a bitmask, several rows may share one.

    bitmask: [M, ceil(V / 32)] int32, bit j of word w stands for token 32 w + j; 1 is allowed.
             At least one token of every used row is allowed
    rows:    [R] int32, the bitmask row, or -1 when every token is allowed
    """

    bitmask: Tensor
    rows: Tensor


@dataclass(frozen=True, slots=True)
class ScoreSpec:
    """How each row is scored and drawn.

    temperature: [R] float32 >= 0; 0 draws the most likely token
    seeds, positions: [R] int64; purposes, attempts: [R] int32: the counters of the noise
    top_k:       [R] int32, 0 is off; top_p: [R] float32 in (0, 1], 1 is off; min_p: [R] float32
                 in [0, 1), 0 is off. Each None when no row uses it
    adjust, allowed: penalties and bias, allowed tokens; None when no row has any
    suppressed:  ids that are never drawn and count in no probability (a mask token)
    num_top:     how many best tokens to report, at most 64
    given:       [R] int64, a token whose log-probability is wanted
    embedding:   [V, d_z], whose expectation is wanted
    wide_rows:   [F] int64, the rows that ask for top-k, top-p, min-p or top tokens; None when any
                 may. On a GPU these rows alone get full logits, a bounded number at a time, and
                 top tokens; elsewhere it changes nothing
    """

    temperature: Tensor
    seeds: Tensor
    positions: Tensor
    purposes: Tensor
    attempts: Tensor
    top_k: Tensor | None = None
    top_p: Tensor | None = None
    min_p: Tensor | None = None
    adjust: SparseAdjust | None = None
    allowed: AllowedTokens | None = None
    suppressed: tuple[int, ...] = ()
    num_top: int = 0
    given: Tensor | None = None
    embedding: Tensor | None = None
    wide_rows: Tensor | None = None

    @property
    def filters(self) -> bool:
        """Whether some row may draw from fewer tokens than are allowed."""
        return self.top_k is not None or self.top_p is not None or self.min_p is not None


@dataclass(frozen=True, slots=True)
class RowScores:
    """What the network says of each row.

    Probabilities are of the distribution after adjust, allowed and suppressed, before temperature
    and top-k, top-p, min-p, which act on the draw alone.

    token:           [R] int64, drawn
    probability:     [R] float32, of the drawn token
    argmax:          [R] int64, the most likely token; the lowest id wins a tie
    p1, p2:          [R] float32, probabilities of the two most likely tokens
    log_sum_exp:     [R] float32
    entropy:         [R] float32 in nats
    given_logprob:   [R] float32; -inf when the token is not allowed
    top_ids:         [R, num_top] int64, best first; top_logprobs [R, num_top] float32; zeros and
                     -inf in rows that are not wide
    expected_embedding: [R, d_z] float32, sum over tokens of probability times embedding
    """

    token: Tensor
    probability: Tensor
    argmax: Tensor
    p1: Tensor
    p2: Tensor
    log_sum_exp: Tensor
    entropy: Tensor
    given_logprob: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None
    expected_embedding: Tensor | None = None


def check_spec(spec: ScoreSpec, rows: int, vocab: int) -> None:
    """Raise ValueError when the spec does not fit R rows and V tokens."""
    if spec.temperature.shape != (rows,):
        raise ValueError(f"temperature must be [{rows}], got {tuple(spec.temperature.shape)}")
    if not 0 <= spec.num_top <= min(MAX_NUM_TOP, vocab):
        raise ValueError(f"num_top must be in [0, {min(MAX_NUM_TOP, vocab)}], got {spec.num_top}")
    if spec.suppressed and not 0 <= min(spec.suppressed) <= max(spec.suppressed) < vocab:
        raise ValueError(f"suppressed ids must be in [0, {vocab}), got {spec.suppressed}")
    if spec.allowed is not None and spec.allowed.bitmask.shape[1] != (vocab + 31) // 32:
        raise ValueError(
            f"a bitmask row must hold {(vocab + 31) // 32} words, "
            f"got {spec.allowed.bitmask.shape[1]}"
        )
