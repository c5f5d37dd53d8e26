import itertools
import math

import pytest
import torch

from kernels import PagedBatch, allocate_kv_cache
from tests.weights.training.runs import TINY_EVO
from weights import NetworkInput, load_model
from weights.network.latent import LatentRows
from weights.training.data.text import train_vocabulary
from weights.training.evo import (
    CANVAS_WIDTHS,
    calibration,
    draw_canvases,
    pool_rising,
    say,
    tiling,
)
from weights.training.evo_levels import MeasuredEntropy
from weights.training.evo_network import canvas_visibility
from weights.training.export import ModelCard, export

# Both sides are float32; they differ by the order of sums only.
TOLERANCE = 1e-4
PAGE_SIZE = 16


@pytest.fixture
def model():
    return TINY_EVO.build(300, torch.Generator().manual_seed(5))


@pytest.fixture
def served(model, tmp_path):
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(value.half())
    figures = {"calibration": [[0.0, 0.0], [1.0, 0.9]]}
    export(
        tmp_path / "model",
        tensors=model.tensors(),
        config=model.config(figures),
        tokenizer=train_vocabulary(["to be or not to be"], vocab_size=300),
        card=ModelCard("title", "about", "limits", "command", {}, figures),
        notices=[],
    )
    return load_model(tmp_path / "model", dtype=torch.float32, device=torch.device("cpu"))


def serve(network, tokens, *, begin, levels, vectors):
    """Logits of all token rows, then of a canvas of latent rows from `begin` on."""
    length, width = tokens.shape[0], levels.shape[0]
    rows = torch.arange(length + width)
    canvas = rows[length:]
    nothing = torch.zeros(length, dtype=torch.int64)
    limits = torch.cat((rows[:length] + 1, torch.full((width,), begin)))
    batch = PagedBatch(
        span_starts=torch.tensor([0, length + width], dtype=torch.int32),
        page_table=torch.arange(-(-(length + width) // PAGE_SIZE), dtype=torch.int32)[None],
        slots=rows,
        limits=limits.int(),
        max_span=length + width,
        max_limit=length + width,
        window_starts=torch.cat((nothing, torch.full((width,), length))).int(),
        window_stops=torch.cat((nothing, torch.full((width,), length + width))).int(),
    )
    step = NetworkInput(
        token_ids=torch.cat((tokens, torch.zeros(width, dtype=torch.int64))),
        positions=torch.cat((rows[:length], begin + torch.arange(width))),
        score_rows=rows,
        batch=batch,
        latents=LatentRows(
            rows=canvas,
            scored=canvas,
            levels=levels,
            offsets=torch.arange(width),
            vectors=vectors,
            of_scored=torch.arange(width),
        ),
    )
    cache = allocate_kv_cache(
        num_layers=network.num_layers,
        num_pages=batch.page_table.shape[1],
        page_size=PAGE_SIZE,
        num_kv_heads=network.num_kv_heads,
        head_dim=network.head_dim,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    prior = network.latent.prior
    wide = prior.widen(network.forward(step, cache), step.latents)
    return (wide @ prior.head.T).split((length, width))


@torch.no_grad()
def test_training_and_serving_compute_the_same(model, served):
    network = model.network
    drawn = torch.Generator().manual_seed(2)
    tokens = torch.randint(300, (1, 24), generator=drawn)
    levels = torch.tensor([[64] * 8 + [0, 3, 20, 40, 50, 60, 64, 64] + [64] * 8])
    z = torch.randn(1, 24, network.shape.latent_size, generator=drawn)
    # The embedding is stored in float16: serving knows it so.
    stored = network.unit_embedding().half().float()
    model.network.unit_embedding = lambda: stored
    likelihood = network.likelihood(z, levels)
    canvases = tiling(torch.arange(24)[None] % 8, levels)
    settled, drafted = network(tokens, network.embed_latents(likelihood, levels), canvases)
    says = network.head(drafted) + likelihood
    token_logits, canvas_logits = serve(
        served.network, tokens[0], begin=8, levels=levels[0, 8:16], vectors=z[0, 8:16]
    )
    torch.testing.assert_close(
        token_logits, network.head(settled)[0], atol=TOLERANCE, rtol=TOLERANCE
    )
    torch.testing.assert_close(
        canvas_logits.log_softmax(-1)[1:],
        says[0, 9:16].log_softmax(-1),
        atol=TOLERANCE,
        rtol=TOLERANCE,
    )


def test_a_checkpoint_says_what_serving_needs(served):
    latent = served.config.latent
    assert served.family.name == "evo"
    assert (latent.size, latent.num_levels, latent.width) == (8, 64, 16)
    assert latent.calibration == ((0.0, 0.0), (1.0, 0.9))
    assert served.generation.eos_token_ids == (0,)
    table = served.network.latent.embedding
    torch.testing.assert_close(table.square().mean(dim=1), torch.ones(300), atol=1e-3, rtol=0)


def test_token_rows_do_not_see_latent_rows(model):
    network = model.network
    tokens = torch.arange(16)[None]
    latents = torch.randn(1, 16, network.shape.hidden_size)
    canvases = tiling(torch.arange(16)[None] % 4, torch.full((1, 16), 64))
    with_latents, _ = network(tokens, latents, canvases)
    alone, _ = network(tokens)
    torch.testing.assert_close(with_latents, alone)


def test_latent_rows_see_what_is_before_their_canvas_and_all_of_it():
    sees = canvas_visibility(4, tiling(torch.tensor([[1, 2, 0, 1]]), torch.zeros(1, 4)))
    tokens, canvas = sees[0].split(4, dim=1)
    assert tokens.int().tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert canvas.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_an_unknown_row_does_not_depend_on_its_latent(model):
    network = model.network
    unknown = torch.full((1, 3), 64)
    one = network.likelihood(torch.randn(1, 3, 8), unknown)
    assert torch.equal(one, torch.zeros_like(one))


def test_a_final_row_holds_the_embedding_of_its_token(model):
    network = model.network
    tokens = torch.tensor([[3, 9]])
    final = torch.zeros(1, 2, dtype=torch.int64)
    z = network.hide(tokens, final, torch.Generator().manual_seed(1))
    assert torch.equal(z, network.unit_embedding()[tokens])
    held = network.embed_latents(network.likelihood(z, final), final)
    torch.testing.assert_close(held, network.model.embed_tokens(tokens))


def test_the_likelihood_is_that_of_the_noise_that_was_added(model):
    network = model.network
    levels = torch.tensor([[20, 40, 60]])
    z = network.hide(torch.tensor([[3, 9, 4]]), levels, torch.Generator().manual_seed(1))
    t = (levels / 64)[..., None, None]
    distance = (z.unsqueeze(2) - (1 - t) * network.unit_embedding()).square().sum(-1)
    exact = -distance / (2 * t.squeeze(-1) ** 2)
    torch.testing.assert_close(
        network.likelihood(z, levels).log_softmax(-1),
        exact.log_softmax(-1),
        atol=TOLERANCE,
        rtol=TOLERANCE,
    )


def test_canvases_of_every_width_tile_the_texts():
    tokens = torch.zeros(400, 128, dtype=torch.int64)
    canvases = draw_canvases(tokens, MeasuredEntropy(64), torch.Generator().manual_seed(1))
    widths = (canvases.starts[:, 64:65] == canvases.starts).sum(dim=1)
    assert set(widths.tolist()) == set(CANVAS_WIDTHS)
    assert torch.equal(canvases.positions, torch.arange(128).expand(400, 128))
    assert (canvases.starts <= canvases.positions).all()
    assert set(canvases.levels.flatten().tolist()) >= {0, 64}


def test_a_canvas_of_one_row_is_bounded_by_what_the_row_says(model):
    model.eval()
    tokens = torch.randint(300, (4, 32), generator=torch.Generator().manual_seed(3))
    figures = model.figures(tokens, torch.Generator().manual_seed(1))
    network = model.network
    canvases = tiling(torch.zeros(4, 32, dtype=torch.int64), torch.full((4, 32), 64))
    with torch.no_grad():
        _, says = say(network, tokens, canvases, torch.Generator())
        nll = torch.nn.functional.cross_entropy(says.flatten(0, 1), tokens.flatten())
    assert figures["row_at_t_1_nll"] == pytest.approx(float(nll), abs=1e-5)
    assert set(figures["canvas_bound_nll"]) == {"4", "8", "16", "32"}
    assert all(math.isfinite(bound) for bound in figures["canvas_bound_nll"].values())


def test_a_calibration_rises_from_0_to_1(model):
    tokens = torch.randint(300, (4, 32), generator=torch.Generator().manual_seed(3))
    pairs = model.figures(tokens, torch.Generator().manual_seed(1))["calibration"]
    assert [pairs[0][0], pairs[-1][0]] == [0.0, 1.0]
    assert all(
        before[0] < after[0] and before[1] <= after[1]
        for before, after in itertools.pairwise(pairs)
    )


@pytest.mark.parametrize(
    ("values", "pooled"),
    [
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]),
        ([0.3, 0.1, 0.5], [0.2, 0.2, 0.5]),
        ([0.5, 0.4, 0.0, 0.6], [0.3, 0.3, 0.3, 0.6]),
        ([0.1, 0.6, 0.2, 0.4], [0.1, 0.4, 0.4, 0.4]),
    ],
)
def test_pooling_gives_the_nearest_rising_values(values, pooled):
    assert pool_rising(values) == pytest.approx(pooled)


def test_a_measured_curve_begins_at_0_and_is_pooled_where_it_falls():
    assert calibration([(0.0, 0.1), (0.25, 0.3), (0.5, 0.1), (1.0, 0.8)]) == [
        [0.0, 0.0],
        [0.25, 0.2],
        [0.5, 0.2],
        [1.0, 0.8],
    ]
