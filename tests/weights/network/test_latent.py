"""Latent rows beside ordinary ones: the base stays as it is; adapters fit one base only."""

import pytest
import torch
from safetensors.torch import load_file

from kernels import PagedBatch, allocate_kv_cache
from tests.weights.adapters import BASE, CALIBRATION, LEVELS, OFFSETS, RANK, load, write_adapter
from tests.weights.folders import copy_folder
from weights.errors import CheckpointError
from weights.load import Quantize
from weights.network.interface import NetworkInput
from weights.network.latent import LatentRows
from weights.network.latent_config import LatentDefaults
from weights.training.canvas_network import AdapterShape, CanvasAdapter, Canvases, FrozenBase


def run(network, tokens, *, latents=None, num_latents=0):
    """One step over a text and a canvas of latents behind it; hidden rows of everything."""
    length, rows = len(tokens), len(tokens) + num_latents
    cache = allocate_kv_cache(
        num_layers=network.num_layers,
        num_pages=1,
        page_size=64,
        num_kv_heads=network.num_kv_heads,
        head_dim=network.head_dim,
        dtype=torch.float32,
        device=torch.device("cpu"),
        is_zeroed=network.is_row_exact,
    )
    positions = torch.arange(rows)
    limits = torch.where(positions < length, positions + 1, rows).int()
    batch = PagedBatch(
        span_starts=torch.tensor([0, rows], dtype=torch.int32),
        page_table=torch.zeros((1, 1), dtype=torch.int32),
        slots=positions,
        limits=limits,
        max_span=rows,
        max_limit=rows,
    )
    ids = torch.tensor(tokens + [0] * num_latents)
    step = NetworkInput(ids, positions, positions, batch, latents=latents)
    with torch.inference_mode():
        return network.forward(step, cache)


def canvas(length, levels, *, size):
    rows = torch.arange(length, length + len(levels))
    return LatentRows(
        rows=rows,
        scored=rows,
        levels=torch.tensor(levels),
        offsets=torch.arange(len(levels)),
        vectors=torch.randn((len(levels), size), generator=torch.Generator().manual_seed(2)),
    )


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("adapters") / "one")


@pytest.mark.parametrize("quantize", [None, Quantize.INT8])
def test_settled_rows_compute_the_same_bits_with_and_without_the_adapter(adapter, quantize):
    plain, adapted = load(quantize=quantize), load(adapter, quantize=quantize)
    tokens = [3, 1, 4, 1, 5]
    latents = canvas(len(tokens), [LEVELS, 3, 0], size=plain.config.hidden_size)
    # The same plan: the rows behind the text are there in both, as tokens or as latents.
    without = run(plain.network, tokens, num_latents=3)
    with_latents = run(adapted.network, tokens, latents=latents, num_latents=3)
    assert torch.equal(without[:5], with_latents[:5])
    assert not torch.allclose(without[5:], with_latents[5:], atol=1e-2)


def test_at_t_1_the_vector_says_nothing(adapter):
    network = load(adapter).network
    tokens = [3, 1, 4]
    one = canvas(3, [LEVELS, LEVELS], size=network.latent.size)
    other = LatentRows(one.rows, one.scored, one.levels, one.offsets, vectors=None)
    first = run(network, tokens, latents=one, num_latents=2)
    assert torch.equal(first, run(network, tokens, latents=other, num_latents=2))
    low = LatentRows(one.rows, one.scored, one.levels - 1, one.offsets, one.vectors)
    assert not torch.allclose(first, run(network, tokens, latents=low, num_latents=2), atol=1e-3)


def test_int8_latent_rows_are_close_to_float_ones(adapter):
    tokens = [3, 1, 4, 1, 5]
    exact, rounded = load(adapter).network, load(adapter, quantize=Quantize.INT8).network
    latents = canvas(5, [LEVELS, 3, 5, 0], size=exact.latent.size)
    wanted = run(exact, tokens, latents=latents, num_latents=4)
    found = run(rounded, tokens, latents=latents, num_latents=4)
    # The int8 network divides its norms by what its matrices are multiplied with.
    head, int8_head = exact.head_weight, rounded.vocabulary.head
    logits = torch.nn.functional.linear(wanted, head)
    assert (logits - int8_head(found)).abs().max() < 0.1 * logits.abs().max()


def test_the_network_of_training_is_the_one_that_serves(adapter, tmp_path):
    model = load(adapter)
    base = FrozenBase(load().network, torch.float32)
    trained = CanvasAdapter(base, AdapterShape(rank=RANK, num_levels=LEVELS, max_width=OFFSETS))
    stored = load_file(adapter / "model.safetensors")
    with torch.no_grad():
        trained.input.copy_(stored["latent.input.weight"])
        trained.unknown.copy_(stored["latent.time.weight"][-1])
        trained.offset.copy_(stored["latent.offset.weight"])
        for name in trained.down:
            layer, matrix = name.split("_")
            begin = f"latent.layers.{layer}.{matrix}"
            trained.down[name].copy_(stored[f"{begin}.down.weight"])
            trained.up[name].copy_(stored[f"{begin}.up.weight"])
        trained.time[2].bias.copy_(torch.full_like(trained.time[2].bias, 0.05))
        stored["latent.time.weight"] = trained.time_table().contiguous()
    tokens = [3, 1, 4, 1, 5]
    latents = canvas(5, [LEVELS, 3, 0, 5], size=model.config.hidden_size)
    served = load(write_adapter(tmp_path / "new", tensors=stored))
    # Latents of the served network are in the units of the token table.
    scaled = LatentRows(
        latents.rows,
        latents.scored,
        latents.levels,
        latents.offsets,
        latents.vectors * base.embedding_scale,
    )
    wanted = run(served.network, tokens, latents=scaled, num_latents=4)[5:]
    canvases = Canvases(
        latents.vectors, latents.levels, torch.full((4,), 5), latents.offsets, width=4
    )
    text = base.settle(torch.tensor(tokens))
    with torch.no_grad():
        found = base.draft(text, canvases, trained)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(text.hidden, run(served.network, tokens), atol=1e-4, rtol=1e-4)


REFUSED = [
    ({"base": {"fingerprint": "0" * 64}}, "made for another base"),
    ({"base": {"family": "qwen2"}}, "for a qwen2 base, not for llama"),
    ({"config": {"calibration": None}}, "calibration is missing"),
    ({"config": {"calibration": [[0.0, 0.5], [1.0, 0.2]]}}, "both ascending"),
    ({"config": {"calibration": [[0.0, 0.5, 1.0]]}}, "pairs of numbers"),
    ({"config": {"speaks_of": "past"}}, "must be one of own, next"),
    ({"config": {"rank": 5}}, "the config asks for"),
    ({"config": {"rank": 0}}, "low-rank weights need a rank"),
    ({"config": {"matrices": ["qkv"]}}, "only output and down are known"),
    ({"config": {"num_levels": 0}}, "must be at least 1"),
    ({"config": {"decoding": {"jump_uncertainty": 1.5}}}, "must be between 0 and 1"),
    ({"config": {"decoding": {"delta_min": 0.5, "delta_max": 0.1}}}, "must be at most delta_max"),
    ({"config": {"decoding": {"delta_max": 0.1}}}, "are said together"),
    ({"config": {"decoding": {"order": "backwards"}}}, "must be one of any, left_to_right"),
    ({"config": {"decoding": {"max_refine_steps": 0}}}, r"must be within 1\.\.1024"),
    ({"config": {"decoding": {"speed": 2}}}, "no request has a field of that name"),
    ({"drop": ("latent.time.weight",)}, "latent.time.weight is missing"),
    ({"tensors": {"latent.input.weight": torch.zeros(2, 2)}}, "has shape"),
    ({"tensors": {"latent.other.weight": torch.zeros(2)}}, "no place for"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_an_adapter_that_does_not_fit_is_refused_with_a_sentence(changes, reason, tmp_path):
    folder = write_adapter(tmp_path / "adapter", **changes)
    with pytest.raises(CheckpointError, match=reason):
        load(folder)


def test_another_base_of_the_same_shape_is_refused(adapter, tmp_path):
    stored = load_file(BASE / "model.safetensors")
    norm = stored["model.norm.weight"].clone()
    norm[0] += 0.5
    other = copy_folder(BASE, tmp_path / "other", tensors={"model.norm.weight": norm})
    with pytest.raises(CheckpointError, match="another base"):
        load(adapter, path=other)


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load(tmp_path)


def test_an_adapter_says_how_its_latents_move_where_a_request_does_not(tmp_path):
    said = {"delta_min": 0, "delta_max": 0, "uncertainty": "confidence", "order": "left_to_right"}
    said["max_refine_steps"] = 1
    rule = load(write_adapter(tmp_path / "one", config={"decoding": said})).family.rule
    assert rule.latent.defaults == LatentDefaults(**said)
    assert load(write_adapter(tmp_path / "two")).family.rule.latent.defaults == LatentDefaults()


def test_an_adapted_base_decodes_three_ways(adapter):
    rule = load(adapter).family.rule
    assert rule.modes == ("ar", "diffusion", "speculative")
    assert rule.latent.num_levels == LEVELS
    assert rule.latent.calibration == tuple(tuple(pair) for pair in CALIBRATION)
