"""Search for a cutoff among logits in memory, without sorting, for the kernels of full rows.

Floats become integers in the same order (keys). A pass over a row weighs what lies at or above
eight thresholds at once; the bracket that holds the cutoff shrinks ninefold, and to the keys that
are present in it. Weights are counts or masses; both sums fall as thresholds rise, also as
rounded (every threshold adds in one fixed order), so the cutoff is exact: the largest key
at or above which there is as much as wanted.

Shapes: C columns of the head.
"""

import triton
import triton.language as tl

from kernels.score.fold import NO_LOGIT, load_logits

_NO_KEY = tl.constexpr(-(2**31))
_LAST_KEY = tl.constexpr(2**31 - 1)
# The first thresholds lie 104, 52, 26 ... below the peak: below 104 no mass is left in float32.
_FIRST_GAP = tl.constexpr(104.0)


@triton.jit
def key_of(values):  # noqa: ANN201
    """Integers in the order of the float32 values; both zeros are one."""
    bits = tl.where(values == 0.0, 0.0, values).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(key):  # noqa: ANN201
    """The float32 of a key."""
    bits = key ^ ((key >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def first_tied(key, temperature):  # noqa: ANN201
    """The smallest key whose value divided by the temperature equals that of this key."""
    tempered = tl.math.div_rn(value_of(key), temperature)
    low = key_of(tl.full((), NO_LOGIT, tl.float32)).to(tl.int64) - 1
    high = key.to(tl.int64)
    while low + 1 < high:
        middle = (low + high) // 2
        is_tied = tl.math.div_rn(value_of(middle.to(tl.int32)), temperature) == tempered
        high = tl.where(is_tied, middle, high)
        low = tl.where(is_tied, low, middle)
    return high.to(tl.int32)


@triton.jit
def mass_from(row_ptr, num_columns, cutoff, peak, inverse, BLOCK: tl.constexpr):  # noqa: ANN201
    """Sum of exp((logit - peak) * inverse) of the logits whose key is at least the cutoff."""
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        logits = load_logits(row_ptr, columns, num_columns)
        masses = tl.exp((logits - peak) * inverse)
        sums += tl.where(key_of(logits) >= cutoff, masses, 0.0)
    return tl.sum(sums, axis=0)


@triton.jit
def find_cutoff(  # noqa: ANN201
    row_ptr,
    num_columns,
    peak,
    inverse,
    lowest,
    wanted,
    BY_MASS: tl.constexpr,
    BLOCK: tl.constexpr,
    WAYS: tl.constexpr,
):
    """The largest key with a weight of at least `wanted` from it on, and the weight beyond it.

    peak:   the row's largest logit
    lowest: a key from which on there is as much as wanted
    """
    ways = tl.arange(0, WAYS)
    low = lowest.to(tl.int64)
    high = key_of(peak).to(tl.int64) + 1
    beyond = wanted * 0
    passes = tl.full((), 0, tl.int32)
    while low + 1 < high:
        # First halving gaps, and zero last: keys change fastest around it. Then even steps of keys.
        gaps = tl.where(ways < WAYS - 1, _FIRST_GAP * tl.exp2(-ways.to(tl.float32)), peak)
        near_peak = key_of(peak - gaps).to(tl.int64)
        evenly = low + (high - low) * (ways + 1) // (WAYS + 1)
        thresholds = tl.where(passes == 0, near_peak, evenly)
        thresholds = tl.minimum(tl.maximum(thresholds, low + 1), high - 1)
        passes += 1
        weights, least, most = _weigh(
            row_ptr, num_columns, peak, inverse, low, high, thresholds, BY_MASS, BLOCK, WAYS
        )
        is_enough = weights >= wanted
        beyond = tl.maximum(beyond, tl.max(tl.where(is_enough, beyond, weights), axis=0))
        new_low = tl.maximum(low, tl.max(tl.where(is_enough, thresholds, low), axis=0))
        new_high = tl.minimum(high, tl.min(tl.where(is_enough, high, thresholds), axis=0))
        high = tl.minimum(new_high, most.to(tl.int64) + 1)
        low = tl.minimum(tl.maximum(new_low, least.to(tl.int64)), high - 1)
    return low.to(tl.int32), beyond


@triton.jit
def _weigh(
    row_ptr,
    num_columns,
    peak,
    inverse,
    low,
    high,
    thresholds,
    BY_MASS: tl.constexpr,
    BLOCK: tl.constexpr,
    WAYS: tl.constexpr,
):
    """Weights [WAYS] from each threshold on; the least and the most key in [low, high)."""
    limits = thresholds.to(tl.int32)[:, None]
    low_key = low.to(tl.int32)
    last_key = (high - 1).to(tl.int32)
    least = tl.full((BLOCK,), _LAST_KEY, tl.int32)
    most = tl.full((BLOCK,), _NO_KEY, tl.int32)
    weights = tl.zeros((WAYS, BLOCK), tl.float32 if BY_MASS else tl.int32)
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < num_columns
        logits = load_logits(row_ptr, columns, num_columns)
        keys = tl.where(mask, key_of(logits), _NO_KEY)
        # Most tiles of a large vocabulary hold nothing that is still in question.
        if tl.max(keys, axis=0) >= low_key:
            is_above = keys[None, :] >= limits
            if BY_MASS:
                masses = tl.exp((logits - peak) * inverse)
                weights += tl.where(is_above, masses[None, :], 0.0)
            else:
                weights += is_above.to(tl.int32)
            is_inside = (keys >= low_key) & (keys <= last_key)
            least = tl.minimum(least, tl.where(is_inside, keys, _LAST_KEY))
            most = tl.maximum(most, tl.where(is_inside, keys, _NO_KEY))
    return tl.sum(weights, axis=1), tl.min(least, axis=0), tl.max(most, axis=0)
