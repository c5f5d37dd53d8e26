"""Launch and kernels of `score_rows`: matrix product with statistics in place of logits.

A program takes a tile of rows and a run of vocabulary tiles. Each tile of logits is folded into a
few numbers per row while it is still in registers; what a program has gathered at its end is one
partial. Tokens with a penalty or bias are left out there; a program per row computes just those
afterwards and leaves one more partial. Partials merge in any order, over programs and over the
ranks of a tensor-parallel group.

Shapes: R rows, V vocabulary entries of this rank, d entries of the residual stream, P partials,
W words of a bitmask row, d_z latent width.
"""

from dataclasses import replace
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import LAUNCH, capability
from kernels.linear import Int8Weight
from kernels.noise_kernel import launch_noise_keys
from kernels.score.fold import NO_LOGIT, NO_TOKEN, fold, suppress, write_partial
from kernels.score.partials import NUM_NUMBERS, NUM_TOKENS, ScorePartials, merge_partials
from kernels.score.spec import AllowedTokens, ScoreSpec
from kernels.score.tiles import most_latents, sparse_size, tile_sizes
from kernels.score.wide_rows import adjusted_rows

# Programs that keep a GPU busy: two on each of about 132 multiprocessors.
_PROGRAMS = 264
_RUN_TIME_SIZES = [
    "num_rows",
    "num_partials",
    "tiles_per_split",
    "num_suppressed",
    "has_bitmask",
    "vocab_start",
    "partial",
]


def launch_score_partials(
    hidden: Tensor,
    head_weight: Tensor | Int8Weight,
    head_bias: Tensor | None,
    spec: ScoreSpec,
    *,
    vocab_start: int,
    full_vocab: int,
) -> ScorePartials:
    """Start the kernels for a head that holds tokens from vocab_start on, of full_vocab in all."""
    rows, width = hidden.shape
    device = hidden.device
    hidden = hidden.contiguous()
    values, scales = _head_parts(head_weight, hidden)
    vocab = values.shape[0]
    latent = 0 if spec.embedding is None else spec.embedding.shape[1]
    if latent > most_latents(hidden.dtype):
        return _launch_in_parts(
            hidden, head_weight, head_bias, spec, vocab_start=vocab_start, full_vocab=full_vocab
        )
    sizes = tile_sizes(hidden.dtype, latent, capability(device))
    size = next((size for size in sizes if size.rows >= rows), sizes[-1])
    tiles = triton.cdiv(vocab, size.entries)
    row_tiles = triton.cdiv(rows, size.rows)
    splits = min(tiles, max(1, _PROGRAMS // max(row_tiles, 1)))
    tiles_per_split = triton.cdiv(tiles, splits)
    splits = triton.cdiv(tiles, tiles_per_split)
    partials = splits + (spec.adjust is not None)
    result = ScorePartials(
        numbers=torch.empty((NUM_NUMBERS, partials, rows), dtype=torch.float32, device=device),
        tokens=torch.empty((NUM_TOKENS, partials, rows), dtype=torch.int32, device=device),
        expected=(
            torch.empty((partials, rows, latent), dtype=torch.float32, device=device)
            if latent
            else None
        ),
    )
    if rows == 0:
        return result
    keys = launch_noise_keys(spec.seeds, spec.positions, spec.purposes, spec.attempts)
    # Arguments that a switch leaves unread still have to be tensors.
    masks = AllowedTokens(keys, keys)
    if spec.allowed is not None or spec.adjust is not None:
        masks = _bitmask(spec, rows, full_vocab, device)
    suppressed = _suppressed_ids(spec.suppressed, device)
    given = spec.seeds if spec.given is None else spec.given
    shared = (
        hidden,
        values,
        hidden if scales is None else scales,
        hidden if head_bias is None else head_bias,
        hidden if spec.embedding is None else spec.embedding.contiguous(),
        spec.temperature,
        keys,
        given,
    )
    written = (result.numbers, result.tokens, hidden if latent == 0 else result.expected)
    constants = {
        "VOCAB": vocab,
        "WIDTH": width,
        "WORDS": (full_vocab + 31) // 32,
        "HAS_SCALES": scales is not None,
        "HAS_BIAS": head_bias is not None,
        "LATENT": latent,
        "BLOCK_Z": max(16, triton.next_power_of_2(latent)),
    }
    _score_tiles_kernel[(row_tiles, splits)](
        *shared,
        masks.bitmask,
        masks.rows,
        suppressed,
        *written,
        rows,
        partials,
        tiles_per_split,
        len(spec.suppressed),
        int(spec.allowed is not None or spec.adjust is not None),
        vocab_start,
        **constants,
        BLOCK_R=size.rows,
        BLOCK_V=size.entries,
        BLOCK_K=size.depth,
        STAGES=size.stages,
        num_warps=size.warps,
        **LAUNCH,
    )
    if spec.adjust is not None:
        sparse = sparse_size(latent)
        own = spec.allowed or AllowedTokens(masks.bitmask, torch.full_like(masks.rows, -1))
        _score_adjusted_kernel[(rows,)](
            *shared,
            own.bitmask,
            own.rows,
            suppressed,
            spec.adjust.row_starts,
            spec.adjust.token_ids,
            spec.adjust.penalties,
            spec.adjust.values,
            *written,
            rows,
            partials,
            splits,
            len(spec.suppressed),
            int(spec.allowed is not None),
            vocab_start,
            **constants,
            BLOCK_V=sparse.entries,
            BLOCK_K=sparse.depth,
            num_warps=sparse.warps,
            **LAUNCH,
        )
    return result


def _launch_in_parts(
    hidden: Tensor,
    head_weight: Tensor | Int8Weight,
    head_bias: Tensor | None,
    spec: ScoreSpec,
    *,
    vocab_start: int,
    full_vocab: int,
) -> ScorePartials:
    """The same for an embedding wider than a program's registers hold: parts of it one by one."""
    assert spec.embedding is not None, "only embeddings are wide"
    # Parts differ in their numbers of programs, so each is merged to one partial per row.
    parts = [
        merge_partials(
            launch_score_partials(
                hidden,
                head_weight,
                head_bias,
                replace(spec, embedding=part),
                vocab_start=vocab_start,
                full_vocab=full_vocab,
            )
        )
        for part in spec.embedding.split(most_latents(hidden.dtype), dim=1)
    ]
    expected = [part.expected for part in parts if part.expected is not None]
    return replace(parts[0], expected=torch.cat(expected, dim=2))


@cache
def _suppressed_ids(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """The ids on the device, sent once: they belong to the model, not to a step."""
    return torch.tensor(ids or (0,), dtype=torch.int32, device=device)


def _head_parts(head: Tensor | Int8Weight, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    if isinstance(head, Tensor):
        return head.contiguous(), None
    if head.values.is_mkldnn:  # packed for a CPU, where only the interpreter comes here
        return head.values.to_dense().t().contiguous(), head.scales.to(hidden.device)
    return head.values, head.scales


def _bitmask(spec: ScoreSpec, rows: int, vocab: int, device: torch.device) -> AllowedTokens:
    """Tokens that the tiles may count: allowed ones without those that are adjusted."""
    words = (vocab + 31) // 32
    if spec.adjust is None:
        assert spec.allowed is not None, "one of them is there"
        return spec.allowed
    every = torch.full((1, 1), -1, dtype=torch.int32, device=device)
    if spec.allowed is None:
        mask = every.repeat(rows, words)
    else:
        index = spec.allowed.rows.long()
        mask = torch.where(index[:, None] < 0, every, spec.allowed.bitmask[index.clamp_min(0)])
    entry_rows = adjusted_rows(spec.adjust)
    ids = spec.adjust.token_ids.long()
    bits = torch.ones_like(spec.adjust.token_ids) << (ids % 32).int()
    flat = entry_rows * words + ids // 32
    set_bits = mask.view(-1)[flat] & bits
    mask.view(-1).index_add_(0, flat, -set_bits)
    return AllowedTokens(mask, torch.arange(rows, dtype=torch.int32, device=device))


@triton.jit(do_not_specialize=_RUN_TIME_SIZES)
def _score_tiles_kernel(  # noqa: PLR0915
    hidden_ptr,  # [R, d]
    head_ptr,  # [V, d]
    scales_ptr,  # [V] float32
    bias_ptr,  # [V]
    embedding_ptr,  # [V, d_z]
    temperature_ptr,  # [R] float32
    keys_ptr,  # [R, 2] int32
    given_ptr,  # [R] int64
    bitmask_ptr,  # [M, W] int32
    bitmask_rows_ptr,  # [R] int32
    suppressed_ptr,  # [num_suppressed] int32
    numbers_ptr,  # [7, P, R] float32
    tokens_ptr,  # [2, P, R] int32
    expected_ptr,  # [P, R, d_z] float32
    num_rows,
    num_partials,
    tiles_per_split,
    num_suppressed,
    has_bitmask,
    vocab_start,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    WORDS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LATENT: tl.constexpr,
    BLOCK_Z: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    # Row tiles of one run of the vocabulary start together: the head is read from memory once.
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(1)
    row_mask = rows < num_rows
    row_starts = rows.to(tl.int64) * WIDTH
    depth = tl.arange(0, BLOCK_K)
    latents = tl.arange(0, BLOCK_Z)
    peak = tl.full((BLOCK_R,), NO_LOGIT, tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    weighted = tl.zeros((BLOCK_R,), tl.float32)
    second = peak
    score = peak
    drawn_logit = peak
    given_logit = peak
    best = tl.full((BLOCK_R,), NO_TOKEN, tl.int32)
    drawn = best
    expected = tl.zeros((BLOCK_R, BLOCK_Z), tl.float32)
    for tile in range(split * tiles_per_split, (split + 1) * tiles_per_split):
        columns = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        column_mask = columns < VOCAB
        column_starts = columns.to(tl.int64) * WIDTH
        logits = tl.zeros((BLOCK_R, BLOCK_V), tl.float32)
        for start in tl.range(0, WIDTH, BLOCK_K, num_stages=STAGES):
            inside = start + depth < WIDTH
            h_mask = row_mask[:, None] & inside[None, :]
            h_offsets = row_starts[:, None] + (start + depth)[None, :]
            h = tl.load(hidden_ptr + h_offsets, mask=h_mask, other=0.0)
            w_mask = column_mask[:, None] & inside[None, :]
            w_offsets = column_starts[:, None] + (start + depth)[None, :]
            w = tl.load(head_ptr + w_offsets, mask=w_mask, other=0).to(h.dtype)
            logits = tl.dot(h, tl.trans(w), logits, input_precision="ieee")
        if HAS_SCALES:
            logits *= tl.load(scales_ptr + columns, mask=column_mask, other=0.0)[None, :]
        if HAS_BIAS:
            bias = tl.load(bias_ptr + columns, mask=column_mask, other=0.0).to(tl.float32)
            logits += bias[None, :]
        logits = tl.where(column_mask[None, :], tl.maximum(logits, NO_LOGIT), NO_LOGIT)
        token_ids = (columns + vocab_start)[None, :]
        logits = suppress(logits, token_ids, suppressed_ptr, num_suppressed)
        if has_bitmask != 0:
            # A tile starts at a multiple of 32: whole words, each spread over 32 columns.
            masks = tl.load(bitmask_rows_ptr + rows, mask=row_mask, other=-1)[:, None]
            word_ids = (tile * BLOCK_V + vocab_start) // 32 + tl.arange(0, BLOCK_V // 32)
            word_mask = (masks >= 0) & (word_ids < WORDS)[None, :]
            word_offsets = masks.to(tl.int64) * WORDS + word_ids[None, :]
            words = tl.load(bitmask_ptr + word_offsets, mask=word_mask, other=-1)
            words = tl.broadcast_to(words[:, :, None], (BLOCK_R, BLOCK_V // 32, 32))
            words = tl.reshape(words, (BLOCK_R, BLOCK_V))
            logits = tl.where(((words >> (token_ids % 32)) & 1) != 0, logits, NO_LOGIT)
        old_peak = peak
        if LATENT == 0:
            # Half the columns at a time: temporaries of a whole tile would not fit in registers.
            halves = tl.permute(tl.reshape(logits, (BLOCK_R, 2, BLOCK_V // 2)), (0, 2, 1))
            logits, right = tl.split(halves)
            token_ids = (tile * BLOCK_V + vocab_start + tl.arange(0, BLOCK_V // 2))[None, :]
            peak, total, weighted, second, best, score, drawn, drawn_logit, given_logit, _ = fold(
                right, token_ids + BLOCK_V // 2, rows, row_mask, temperature_ptr, keys_ptr,
                given_ptr, peak, total, weighted, second, best, score, drawn, drawn_logit,
                given_logit, True,
            )  # fmt: skip
        peak, total, weighted, second, best, score, drawn, drawn_logit, given_logit, masses = fold(
            logits, token_ids, rows, row_mask, temperature_ptr, keys_ptr, given_ptr,
            peak, total, weighted, second, best, score, drawn, drawn_logit, given_logit, True,
        )  # fmt: skip
        if LATENT > 0:
            e_mask = column_mask[:, None] & (latents < LATENT)[None, :]
            e_offsets = columns.to(tl.int64)[:, None] * LATENT + latents[None, :]
            e = tl.load(embedding_ptr + e_offsets, mask=e_mask, other=0.0)
            expected *= tl.exp(old_peak - peak)[:, None]
            expected = tl.dot(masses.to(e.dtype), e, expected, input_precision="ieee")
    write_partial(
        rows, row_mask, split, num_rows, num_partials, numbers_ptr, tokens_ptr,
        peak, total, weighted, second, best, score, drawn, drawn_logit, given_logit,
    )  # fmt: skip
    if LATENT > 0:
        z_offsets = (split.to(tl.int64) * num_rows + rows)[:, None] * LATENT + latents[None, :]
        z_mask = row_mask[:, None] & (latents < LATENT)[None, :]
        tl.store(expected_ptr + z_offsets, expected, mask=z_mask)


@triton.jit(do_not_specialize=_RUN_TIME_SIZES)
def _score_adjusted_kernel(  # noqa: PLR0915
    hidden_ptr,  # [R, d]
    head_ptr,  # [V, d]
    scales_ptr,  # [V] float32
    bias_ptr,  # [V]
    embedding_ptr,  # [V, d_z]
    temperature_ptr,  # [R] float32
    keys_ptr,  # [R, 2] int32
    given_ptr,  # [R] int64
    bitmask_ptr,  # [M, W] int32
    bitmask_rows_ptr,  # [R] int32
    suppressed_ptr,  # [num_suppressed] int32
    row_starts_ptr,  # [R + 1] int32
    token_ids_ptr,  # [B] int32
    penalties_ptr,  # [B] float32
    values_ptr,  # [B] float32
    numbers_ptr,  # [7, P, R] float32
    tokens_ptr,  # [2, P, R] int32
    expected_ptr,  # [P, R, d_z] float32
    num_rows,
    num_partials,
    partial,
    num_suppressed,
    has_bitmask,
    vocab_start,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    WORDS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LATENT: tl.constexpr,
    BLOCK_Z: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(0) + tl.arange(0, 1)
    row_mask = rows < num_rows
    first = tl.load(row_starts_ptr + tl.program_id(0))
    last = tl.load(row_starts_ptr + tl.program_id(0) + 1)
    depth = tl.arange(0, BLOCK_K)
    latents = tl.arange(0, BLOCK_Z)
    row_start = hidden_ptr + tl.program_id(0).to(tl.int64) * WIDTH
    peak = tl.full((1,), NO_LOGIT, tl.float32)
    total = tl.zeros((1,), tl.float32)
    weighted = tl.zeros((1,), tl.float32)
    second = peak
    score = peak
    drawn_logit = peak
    given_logit = peak
    best = tl.full((1,), NO_TOKEN, tl.int32)
    drawn = best
    expected = tl.zeros((BLOCK_Z,), tl.float32)
    for base in range(first, last, BLOCK_V):
        entries = base + tl.arange(0, BLOCK_V)
        ids = tl.load(token_ids_ptr + entries, mask=entries < last, other=-1)
        columns = ids - vocab_start
        is_own = (entries < last) & (columns >= 0) & (columns < VOCAB)
        column_starts = columns.to(tl.int64) * WIDTH
        dots = tl.zeros((BLOCK_V,), tl.float32)
        for start in range(0, WIDTH, BLOCK_K):
            inside = start + depth < WIDTH
            h = tl.load(row_start + start + depth, mask=inside, other=0.0).to(tl.float32)
            w_mask = is_own[:, None] & inside[None, :]
            w_offsets = column_starts[:, None] + (start + depth)[None, :]
            w = tl.load(head_ptr + w_offsets, mask=w_mask, other=0).to(tl.float32)
            dots += tl.sum(w * h[None, :], axis=1)
        if HAS_SCALES:
            dots *= tl.load(scales_ptr + columns, mask=is_own, other=0.0)
        if HAS_BIAS:
            dots += tl.load(bias_ptr + columns, mask=is_own, other=0.0).to(tl.float32)
        penalties = tl.load(penalties_ptr + entries, mask=is_own, other=1.0)
        values = tl.load(values_ptr + entries, mask=is_own, other=0.0)
        dots = tl.where(dots > 0, dots / penalties, dots * penalties) + values
        logits = tl.where(is_own, tl.maximum(dots, NO_LOGIT), NO_LOGIT)[None, :]
        logits = suppress(logits, ids[None, :], suppressed_ptr, num_suppressed)
        if has_bitmask != 0:
            mask_row = tl.load(bitmask_rows_ptr + tl.program_id(0))
            word_ptr = bitmask_ptr + mask_row.to(tl.int64) * WORDS + ids // 32
            words = tl.load(word_ptr, mask=is_own & (ids // 32 < (mask_row + 1) * WORDS), other=-1)
            # Entries behind the row's last have the id -1, and no shift may be negative.
            logits = tl.where(((words >> (ids & 31)) & 1)[None, :] != 0, logits, NO_LOGIT)
        old_peak = peak
        peak, total, weighted, second, best, score, drawn, drawn_logit, given_logit, masses = fold(
            logits, ids[None, :], rows, row_mask, temperature_ptr, keys_ptr, given_ptr,
            peak, total, weighted, second, best, score, drawn, drawn_logit, given_logit, False,
        )  # fmt: skip
        if LATENT > 0:
            e_mask = is_own[:, None] & (latents < LATENT)[None, :]
            e_offsets = columns.to(tl.int64)[:, None] * LATENT + latents[None, :]
            e = tl.load(embedding_ptr + e_offsets, mask=e_mask, other=0.0).to(tl.float32)
            shrink = tl.sum(tl.exp(old_peak - peak), axis=0)
            expected = expected * shrink + tl.sum(e * tl.trans(masses), axis=0)
    write_partial(
        rows, row_mask, partial, num_rows, num_partials, numbers_ptr, tokens_ptr,
        peak, total, weighted, second, best, score, drawn, drawn_logit, given_logit,
    )  # fmt: skip
    if LATENT > 0:
        z_start = (tl.program_id(0).to(tl.int64) + partial * num_rows.to(tl.int64)) * LATENT
        tl.store(expected_ptr + z_start + latents, expected, mask=latents < LATENT)
