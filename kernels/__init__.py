"""Operations of the network and of decoding on tensors, by name."""

from kernels.accept_rows import (
    accept_distance,
    accept_entropy_bound,
    accept_factor,
    accept_margin,
    accept_quota,
    accept_threshold,
    edit_tokens,
    leading_run,
    rank_positions,
    remask_tokens,
    residual_draw,
    verify_drawn,
    verify_ratio,
)
from kernels.attention.kv_cache import KVCache, allocate_kv_cache, page_bytes
from kernels.attention.paged_attention import paged_attention
from kernels.attention.paged_batch import PagedBatch
from kernels.attention.plan import AttentionPlan, plan_attention
from kernels.attention.store_kv import store_kv
from kernels.cuda_graph import CapturedSteps, Recorder, bucket_for, padding_batch, record_graph
from kernels.dispatch import runs_triton
from kernels.grouped_experts import grouped_experts
from kernels.linear import Int8Weight, linear, quantize_int8
from kernels.noise import (
    PURPOSE_CHOICE,
    PURPOSE_DRAFT,
    PURPOSE_LATENT,
    PURPOSE_ORDER,
    PURPOSE_TARGET,
    gumbel_noise,
    uniform_noise,
)
from kernels.norms import add_rms_norm, layer_norm, rms_norm
from kernels.rotary import RotaryRows, RotaryTable, rotary_rows
from kernels.score.finish import finish_scores
from kernels.score.partials import ScorePartials, join_partials
from kernels.score.ratio import ratio_rows
from kernels.score.rows import score_partials, score_rows
from kernels.score.spec import AllowedTokens, RowScores, ScoreSpec, SparseAdjust
from kernels.swiglu import swiglu

__all__ = [
    "PURPOSE_CHOICE",
    "PURPOSE_DRAFT",
    "PURPOSE_LATENT",
    "PURPOSE_ORDER",
    "PURPOSE_TARGET",
    "AllowedTokens",
    "AttentionPlan",
    "CapturedSteps",
    "Int8Weight",
    "KVCache",
    "PagedBatch",
    "Recorder",
    "RotaryRows",
    "RotaryTable",
    "RowScores",
    "ScorePartials",
    "ScoreSpec",
    "SparseAdjust",
    "accept_distance",
    "accept_entropy_bound",
    "accept_factor",
    "accept_margin",
    "accept_quota",
    "accept_threshold",
    "add_rms_norm",
    "allocate_kv_cache",
    "bucket_for",
    "edit_tokens",
    "finish_scores",
    "grouped_experts",
    "gumbel_noise",
    "join_partials",
    "layer_norm",
    "leading_run",
    "linear",
    "padding_batch",
    "page_bytes",
    "paged_attention",
    "plan_attention",
    "quantize_int8",
    "rank_positions",
    "ratio_rows",
    "record_graph",
    "remask_tokens",
    "residual_draw",
    "rms_norm",
    "rotary_rows",
    "runs_triton",
    "score_partials",
    "score_rows",
    "store_kv",
    "swiglu",
    "uniform_noise",
    "verify_drawn",
    "verify_ratio",
]
