"""Every kernel in every tuned size, compiled for GPUs that need not be there."""

import pytest
import torch
import triton

from kernels import (
    grouped_experts_kernel,
    linear_kernel,
    noise_kernel,
    norms_kernel,
    packed_linear_kernel,
    swiglu_kernel,
)
from kernels.attention import paged_attention_kernel, store_kv_kernel
from kernels.score import adjust_kernel as score_adjust_kernel
from kernels.score import filter_kernel as score_filter_kernel
from kernels.score import finish_kernel as score_finish_kernel
from kernels.score import logits_kernel as score_logits_kernel
from kernels.score import rows_kernel as score_rows_kernel
from kernels.score import tiles as score_tiles
from kernels.score import top_kernel as score_top_kernel
from tests.kernels.ahead_of_time import CAPABILITIES, SHARED_LIMIT, TENSOR_CORES, compile_kernel
from tests.kernels.batches import INTERPRETED

pytestmark = [
    pytest.mark.compile,
    pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled"),
    pytest.mark.parametrize("capability", CAPABILITIES),
]

ATTENTION_TENSORS = {
    "partial": "fp32",
    "partial_lse": "fp32",
    "span_starts": "i32",
    "page_table": "i32",
    "limits": "i32",
    "firsts": "i32",
    "window_starts": "i32",
    "window_stops": "i32",
}
SCORE_TENSORS = {
    "scales": "fp32",
    "temperature": "fp32",
    "keys": "i32",
    "given": "i64",
    "bitmask": "i32",
    "bitmask_rows": "i32",
    "suppressed": "i32",
    "row_starts": "i32",
    "token_ids": "i32",
    "penalties": "fp32",
    "values": "fp32",
    "numbers": "fp32",
    "tokens": "i32",
    "expected": "fp32",
}


def assert_fits(code, capability, *, tensor_cores=True):
    assert code.shared <= SHARED_LIMIT[capability]
    assert (code.stack, code.spills) == (0, 0)
    # Tiles of fewer than 64 rows use the older instruction on every chip.
    used = TENSOR_CORES[capability] in code.ptx or "mma.sync" in code.ptx
    assert used or not tensor_cores


def attention(head_dim, size, capability, path, *, element="bf16", group=4, page_size=64):
    tensors = ATTENTION_TENSORS | dict.fromkeys(("q", "keys", "values", "output"), element)
    constants = {
        "KV_HEADS": 8,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "PAGE_SIZE": page_size,
        "BLOCK_M": size.rows,
        "BLOCK_N": size.entries,
        "BLOCK_D": paged_attention_kernel.block_dim(head_dim),
        "MIN_SPLIT_TILES": 4,
        "STAGES": size.stages,
        "LOOK_AHEAD": paged_attention_kernel.looks_ahead(size, head_dim),
    }
    return compile_kernel(
        paged_attention_kernel._paged_attention_kernel,
        tensors,
        constants,
        capability,
        warps=size.warps,
        floats=("scale_log2",),
        path=path,
    )


HEAD_DIMS = [64, 80, 96, 128, 256]


@pytest.mark.parametrize(
    ("head_dim", "element"),
    [*((dim, element) for element in ("bf16", "fp32") for dim in HEAD_DIMS), (128, "fp16")],
)
def test_paged_attention(head_dim, element, capability, tmp_path):
    """Every tuned size of every head size; 80 and 96 are padded to 128 columns."""
    dtype = torch.float32 if element == "fp32" else torch.bfloat16
    for size in paged_attention_kernel.tile_sizes(head_dim, dtype, capability):
        folder = tmp_path / str(size.rows)
        folder.mkdir()
        code = attention(head_dim, size, capability, folder, element=element)
        assert_fits(code, capability, tensor_cores=element != "fp32")
        if element != "fp32" and paged_attention_kernel.looks_ahead(size, head_dim):
            # Keys and values of a later tile are under way while one is attended to: two groups of
            # copies a tile, so three buffers leave two behind.
            assert code.copies_in_flight >= 2
            assert "cp.async.cg.shared.global" in code.ptx  # 16 bytes each


@pytest.mark.parametrize("element", ["bf16", "fp32"])
@pytest.mark.parametrize("head_dim", [8, 24])
def test_paged_attention_of_small_heads(head_dim, element, capability, tmp_path):
    """Those of small checkpoints, never tuned for: matrix instructions take 16 columns at least."""
    dtype = torch.float32 if element == "fp32" else torch.bfloat16
    for size in paged_attention_kernel.tile_sizes(head_dim, dtype, capability):
        folder = tmp_path / str(size.rows)
        folder.mkdir()
        code = attention(head_dim, size, capability, folder, element=element)
        assert code.shared <= SHARED_LIMIT[capability]


@pytest.mark.parametrize(("group", "page_size"), [(1, 256), (7, 64), (4, 16), (4, 128)])
def test_paged_attention_of_other_groups_and_pages(group, page_size, capability, tmp_path):
    size = paged_attention_kernel.tile_sizes(80, torch.bfloat16, capability)[-1]
    options = {"group": group, "page_size": page_size}
    assert_fits(attention(80, size, capability, tmp_path, **options), capability)


def test_merge_of_splits(capability, tmp_path):
    code = compile_kernel(
        paged_attention_kernel._merge_splits_kernel,
        {"partial": "fp32", "partial_lse": "fp32", "output": "bf16"},
        {"HEADS": 32, "HEAD_DIM": 128, "BLOCK_S": 64, "BLOCK_D": 128},
        capability,
        warps=4,
        path=tmp_path,
    )
    assert_fits(code, capability, tensor_cores=False)


def score(size, latent, head, capability, path, element="bf16"):
    tensors = SCORE_TENSORS | dict.fromkeys(("hidden", "bias", "embedding"), element)
    constants = {
        "VOCAB": 151_936,
        "WIDTH": 4096,
        "WORDS": 4748,
        "HAS_SCALES": head == "i8",
        "HAS_BIAS": False,
        "LATENT": latent,
        "BLOCK_Z": max(16, triton.next_power_of_2(latent)),
        "BLOCK_R": size.rows,
        "BLOCK_V": size.entries,
        "BLOCK_K": size.depth,
        "STAGES": size.stages,
    }
    return compile_kernel(
        score_rows_kernel._score_tiles_kernel,
        tensors | {"head": head},
        constants,
        capability,
        warps=size.warps,
        path=path,
    )


@pytest.mark.parametrize("head", ["bf16", "i8"])
@pytest.mark.parametrize("place", range(2))
def test_score_tiles(place, head, capability, tmp_path):
    size = score_tiles.tile_sizes(torch.bfloat16, 0)[place]
    code = score(size, 0, head, capability, tmp_path)
    assert_fits(code, capability)
    assert code.count("MUFU.LG2") > 0
    assert code.registers < 255


# Widths of latents; 576 is SmolLM2's, and no power of two.
LATENTS = [64, 128, 256, 576, 1024]


@pytest.mark.parametrize("head", ["bf16", "i8"])
@pytest.mark.parametrize("latent", LATENTS)
def test_score_tiles_with_expected_embedding(latent, head, capability, tmp_path):
    (size,) = score_tiles.tile_sizes(torch.bfloat16, latent)
    assert_fits(score(size, latent, head, capability, tmp_path), capability)


@pytest.mark.parametrize("latent", [0, 128, 256, 512])
def test_score_tiles_in_float32(latent, capability, tmp_path):
    (size,) = score_tiles.tile_sizes(torch.float32, latent)
    code = score(size, latent, "fp32", capability, tmp_path, element="fp32")
    assert_fits(code, capability, tensor_cores=False)


@pytest.mark.parametrize("latent", [0, *LATENTS])
def test_score_of_adjusted_tokens(latent, capability, tmp_path):
    tensors = SCORE_TENSORS | dict.fromkeys(("hidden", "head", "bias", "embedding"), "bf16")
    size = score_tiles.sparse_size(latent)
    constants = {
        "VOCAB": 151_936,
        "WIDTH": 4096,
        "WORDS": 4748,
        "HAS_SCALES": False,
        "HAS_BIAS": True,
        "LATENT": latent,
        "BLOCK_Z": max(16, triton.next_power_of_2(latent)),
        "BLOCK_V": size.entries,
        "BLOCK_K": size.depth,
    }
    kernel = score_rows_kernel._score_adjusted_kernel
    code = compile_kernel(kernel, tensors, constants, capability, warps=size.warps, path=tmp_path)
    assert_fits(code, capability, tensor_cores=False)


@pytest.mark.parametrize(("partials", "warps"), [(4, 1), (64, 1), (512, 4)])
def test_finish_of_scores(partials, warps, capability, tmp_path):
    code = compile_kernel(
        score_finish_kernel._finish_scores_kernel,
        {
            "numbers": "fp32",
            "tokens": "i32",
            "temperature": "fp32",
            "ids": "i64",
            "scores": "fp32",
        },
        {"BLOCK_P": partials},
        capability,
        warps=warps,
        path=tmp_path,
    )
    assert_fits(code, capability, tensor_cores=False)


LOGITS_TENSORS = SCORE_TENSORS | {
    "logits": "fp32",
    "top_k": "i32",
    "top_p": "fp32",
    "min_p": "fp32",
    "argmax": "i64",
    "log_sum_exp": "fp32",
    "token": "i64",
    "probability": "fp32",
    "cutoffs": "fp32",
    "is_listed": "i32",
    "found": "i32",
    "ids": "i64",
    "logprobs": "fp32",
}
# Instructions of the loop body for each logit that a thread folds, both logarithms included, and
# registers that leave room for five programs of four warps on a multiprocessor.
FOLD_INSTRUCTIONS = 90
FOLD_REGISTERS = 96


def in_memory(kernel, constants, capability, warps, path):
    code = compile_kernel(kernel, LOGITS_TENSORS, constants, capability, warps=warps, path=path)
    assert_fits(code, capability, tensor_cores=False)
    return code


def test_fold_of_logits(capability, tmp_path):
    block, warps = score_logits_kernel.TUNED
    kernel = score_logits_kernel._fold_logits_kernel
    code = in_memory(kernel, {"BLOCK": block}, capability, warps, tmp_path)
    per_thread = block // (32 * warps)
    assert len(code.instructions) <= FOLD_INSTRUCTIONS * per_thread
    # Two logarithms and one power of a logit, by the chip's own instructions.
    assert code.count("MUFU.LG2") == 2 * per_thread
    assert code.count("MUFU.EX2") <= per_thread + 2
    assert "ld.global.v4" in code.ptx
    assert code.registers <= FOLD_REGISTERS


@pytest.mark.parametrize(
    "kernel", [score_filter_kernel._draw_filtered_kernel, score_top_kernel._find_top_kernel]
)
def test_search_of_cutoffs(kernel, capability, tmp_path):
    """Sixteen warps leave 128 registers to a thread, and sums of all warps meet in memory."""
    block, ways, warps = score_filter_kernel.TUNED
    code = in_memory(kernel, {"BLOCK": block, "WAYS": ways}, capability, warps, tmp_path)
    assert code.shared <= 16 * 2**10


def test_order_of_top_tokens(capability, tmp_path):
    in_memory(score_top_kernel._order_top_kernel, {}, capability, 4, tmp_path)


@pytest.mark.parametrize(("name", "block"), [("_adjust_kernel", 128), ("_forbid_kernel", 4096)])
def test_changes_of_logits(name, block, capability, tmp_path):
    kernel = getattr(score_adjust_kernel, name)
    in_memory(kernel, {"BLOCK": block}, capability, 4, tmp_path)


def test_noise_keys(capability, tmp_path):
    tensors = {"seeds": "i64", "positions": "i64", "purposes": "i32", "attempts": "i32"}
    code = compile_kernel(
        noise_kernel._noise_keys_kernel,
        tensors | {"keys": "i64"},
        {"BLOCK": noise_kernel._BLOCK},
        capability,
        warps=4,
        path=tmp_path,
    )
    assert_fits(code, capability, tensor_cores=False)


@pytest.mark.parametrize("rows", linear_kernel.TUNED)
def test_int8_linear(rows, capability, tmp_path):
    outputs, depth, warps, stages = linear_kernel.TUNED[rows]
    tensors = {"x": "bf16", "values": "i8", "scales": "fp32", "bias": "bf16", "output": "bf16"}
    constants = {
        "WIDTH": 4096,
        "OUTPUTS": 12_288,
        "HAS_BIAS": True,
        "BLOCK_T": rows,
        "BLOCK_O": outputs,
        "BLOCK_K": depth,
        "STAGES": stages,
    }
    kernel = linear_kernel._int8_linear_kernel
    code = compile_kernel(kernel, tensors, constants, capability, warps=warps, path=tmp_path)
    assert_fits(code, capability)


@pytest.mark.parametrize("rows", grouped_experts_kernel.TUNED)
@pytest.mark.parametrize("name", ["_gate_up_kernel", "_down_kernel"])
def test_grouped_experts(name, rows, capability, tmp_path):
    outputs, depth, warps, stages = grouped_experts_kernel.TUNED[rows]
    tensors = dict.fromkeys(("x", "gate_up", "hidden", "down"), "bf16")
    tensors |= {"outputs": "fp32", "weights": "fp32", "order": "i64"}
    tensors |= {"starts": "i32", "tile_starts": "i32"}
    constants = {
        "EXPERTS": 64,
        "WIDTH": 2048,
        "INTERMEDIATE": 1408,
        "BLOCK_T": rows,
        "BLOCK_O": outputs,
        "BLOCK_K": depth,
        "STAGES": stages,
    }
    if name == "_gate_up_kernel":
        constants["CHOSEN"] = 6
    kernel = getattr(grouped_experts_kernel, name)
    code = compile_kernel(kernel, tensors, constants, capability, warps=warps, path=tmp_path)
    assert_fits(code, capability)


@pytest.mark.parametrize("interleaved", [False, True])
def test_store_kv(interleaved, capability, tmp_path):
    tensors = dict.fromkeys(("qkv", "keys", "values", "q", "q_norm", "k_norm"), "bf16")
    tensors |= {"slots": "i64", "cos": "fp32", "sin": "fp32", "scale": "fp32"}
    constants = {
        "Q_HEADS": 32,
        "KV_HEADS": 8,
        "HEAD_DIM": 128,
        "ROTARY_DIM": 128,
        "INTERLEAVED": interleaved,
        "HAS_SCALE": True,
        "HAS_NORM": True,
        "BLOCK_HEADS": 8,
        "BLOCK_D": 128,
    }
    code = compile_kernel(
        store_kv_kernel._store_kv_kernel,
        tensors,
        constants,
        capability,
        warps=4,
        floats=("norm_eps",),
        path=tmp_path,
    )
    assert_fits(code, capability, tensor_cores=False)


@pytest.mark.parametrize("width", [576, 4096, 8192])
def test_rms_norm(width, capability, tmp_path):
    code = compile_kernel(
        norms_kernel._rms_norm_kernel,
        dict.fromkeys(("x", "residual", "weight", "normed", "total"), "bf16"),
        {"WIDTH": width, "BLOCK": triton.next_power_of_2(width), "HAS_RESIDUAL": True},
        capability,
        warps=norms_kernel.num_warps(width),
        floats=("eps",),
        path=tmp_path,
    )
    assert_fits(code, capability, tensor_cores=False)


def test_swiglu(capability, tmp_path):
    code = compile_kernel(
        swiglu_kernel._swiglu_kernel,
        {"gate_up": "bf16", "output": "bf16"},
        {"WIDTH": 12_288, "BLOCK": 1024},
        capability,
        warps=4,
        path=tmp_path,
    )
    assert_fits(code, capability, tensor_cores=False)


@pytest.mark.parametrize("group_size", [32, 128])
def test_int4_linear(group_size, capability, tmp_path):
    tensors = dict.fromkeys(("x", "scales", "bias", "output"), "bf16")
    tensors |= {"packed": "u8", "zeros": "u8"}
    for rows, (outputs, depth, warps, stages) in packed_linear_kernel.TUNED.items():
        folder = tmp_path / str(rows)
        folder.mkdir()
        constants = {
            "WIDTH": 4096,
            "OUTPUTS": 6144,
            "GROUPS": 4096 // group_size,
            "HAS_BIAS": False,
            "BLOCK_T": rows,
            "BLOCK_O": outputs,
            "BLOCK_K": min(depth, group_size),
            "STAGES": stages,
        }
        code = compile_kernel(
            packed_linear_kernel._int4_linear_kernel,
            tensors,
            constants,
            capability,
            warps=warps,
            path=folder,
        )
        assert_fits(code, capability)


def test_fp8_linear(capability, tmp_path):
    tensors = dict.fromkeys(("x", "bias", "output"), "bf16")
    tensors |= {"values": "u8", "scales": "fp32"}
    for rows, (outputs, depth, warps, stages) in packed_linear_kernel.TUNED.items():
        folder = tmp_path / str(rows)
        folder.mkdir()
        constants = {
            "WIDTH": 4096,
            "OUTPUTS": 6144,
            "SCALE_ROWS": 128,
            "SCALE_COLUMNS": 128,
            "GRID_COLUMNS": 32,
            "HAS_BIAS": False,
            "BLOCK_T": rows,
            "BLOCK_O": outputs,
            "BLOCK_K": depth,
            "STAGES": stages,
        }
        code = compile_kernel(
            packed_linear_kernel._fp8_linear_kernel,
            tensors,
            constants,
            capability,
            warps=warps,
            path=folder,
        )
        assert_fits(code, capability)
