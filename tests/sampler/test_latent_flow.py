"""The flow of latents with an exact posterior for a network: it samples the true distribution.

Three correlated tokens of three symbols; the network is Bayes' rule over all 27 texts. What is
checked is the sampler's own: paths, Euler and Heun steps, adaptive progress, renoising.
"""

import itertools

import numpy as np
import pytest
import torch

from kernels import score_rows
from sampler.border.engine_config import EngineConfig
from sampler.engine import Engine, EngineLimits
from sampler.state.latent_table import LatentTable
from sampler.step.latent_scores import score_latents
from sampler.step.latent_store import LatentStore
from sampler.step.runner import to_host
from sampler.step.score_spec import Vocabulary
from tests.tiny import collect, request
from weights.families import latent_rule
from weights.network.latent import LatentInput
from weights.network.latent_config import LatentConfig

SYMBOLS, LENGTH, LEVELS, SIZE = 3, 3, 64, 4
TEXTS = np.array(list(itertools.product(range(SYMBOLS), repeat=LENGTH)))
SAMPLES = 2000
RULE = latent_rule(
    LatentConfig(
        size=SIZE,
        num_levels=LEVELS,
        speaks_of_next=False,
        width=LENGTH,
        calibration=((0.0, 0.0), (1.0, 1.0)),
    )
)


def joint():
    """A random distribution of texts whose tokens depend strongly on one another."""
    generator = np.random.default_rng(5)
    weights = np.exp(2.5 * generator.standard_normal(len(TEXTS)))
    return weights / weights.sum()


def embedding():
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn((SYMBOLS, SIZE), generator=generator)
    return rows / rows.pow(2).mean(1, keepdim=True).sqrt()


class ExactPosterior:
    """A runner whose network knows the joint; the prompt is one token that means nothing."""

    def __init__(self, num_seats, weights=None):
        self.embedding = embedding()
        empty = torch.zeros(1)
        self.latent = LatentInput(empty, empty, empty, None, self.embedding, 1.0)
        self.latents = LatentStore(self.latent, num_seats=num_seats)
        self.head_weight, self.head_bias = torch.eye(SYMBOLS), None
        self.log_joint = torch.tensor(joint() if weights is None else weights).log()
        self.texts = torch.tensor(TEXTS)
        self.evidence = torch.zeros(num_seats, LENGTH, SYMBOLS, dtype=torch.float64)
        self.num_forwards = 0

    def run(self, step, spec):
        self.num_forwards += 1
        rows = torch.zeros(0, SYMBOLS)
        if step.latents is not None:
            vectors = self.latents.move(step.latents)
            of_latents = torch.searchsorted(step.network.latents.rows, step.network.score_rows)
            rows = self._posteriors(step, vectors)[of_latents]
        if step.latents is None:
            return to_host(score_rows(rows.float(), torch.eye(SYMBOLS), None, spec))
        scores = score_latents(
            self, rows.float(), step.network.latents, spec, is_tempered=step.latents.is_tempered
        )
        self.latents.keep_expected(step.latents, scores.expected_embedding)
        return to_host(scores)

    def _posteriors(self, step, vectors):
        """Log posterior [L, symbols] of every latent row's own token, given all of its canvas."""
        network, latents = step.network, step.network.latents
        seat_of_latent = step.latents.slots // LatentTable.columns
        starts = network.batch.span_starts.long()
        span_of_row = torch.arange(len(starts) - 1).repeat_interleave(starts.diff())
        seat_of_span = torch.zeros(len(starts) - 1, dtype=torch.int64)
        seat_of_span[span_of_row[latents.rows]] = seat_of_latent
        # What a span settles is known from now on; position 0 is the prompt.
        settles = torch.ones(len(network.positions), dtype=torch.bool)
        settles[latents.rows] = False
        settles &= network.positions >= 1
        rows = settles.nonzero().flatten()
        known = torch.full((len(rows), SYMBOLS), -torch.inf, dtype=torch.float64)
        known[torch.arange(len(rows)), network.token_ids[rows]] = 0
        places = network.positions[rows] - 1
        self.evidence[seat_of_span[span_of_row[rows]], places] = known
        places = network.positions[latents.rows] - 1
        self.evidence[seat_of_latent, places] = self._likelihood(vectors, latents.levels)
        seats = seat_of_latent.unique()
        log_p = self.log_joint + sum(
            self.evidence[seats][:, place][:, self.texts[:, place]] for place in range(LENGTH)
        )
        p = log_p.softmax(1)  # [seats, texts]
        index = torch.searchsorted(seats, seat_of_latent)
        is_symbol = self.texts.T[places][:, :, None] == torch.arange(SYMBOLS)  # [L, texts, symbols]
        return (p[index][:, :, None] * is_symbol).sum(1).clamp_min(1e-30).log()

    def _likelihood(self, vectors, levels):
        """Log likelihood [L, symbols] of latents, up to a constant; none at t = 1."""
        t = (levels.double() / LEVELS)[:, None]
        means = (1 - t)[:, :, None] * self.embedding.double()
        distance = (vectors.double()[:, None] - means).pow(2).sum(2)
        return torch.where(t < 1, -distance / (2 * t.clamp_min(1e-3) ** 2), 0.0)


def sample(decoding, num_samples=SAMPLES, weights=None, temperature=1.0):
    """Frequencies of texts [27], and forwards per text; weights: of texts, not the joint's."""
    seats = num_samples
    config = EngineConfig(
        model="posterior",
        page_size=16,
        max_sequences=seats,
        max_rows=8 * seats,
        prefix_caching=False,
    )
    runner = ExactPosterior(seats, weights)
    engine = Engine(
        runner=runner,
        rule=RULE,
        vocabulary=Vocabulary(size=SYMBOLS, eos_ids=frozenset()),
        config=config,
        limits=EngineLimits(context_length=16, num_pages=seats + 1),
        device=torch.device("cpu"),
    )
    for i in range(num_samples):
        engine.submit(
            request(
                str(i),
                (0,),
                max_tokens=LENGTH,
                decoding={"mode": "diffusion", **decoding},
                temperature=temperature,
                seed=i,
            )
        )
    answers = {}
    while engine.has_work:
        collect([engine.step()], answers)
    index = [np.dot(tokens, [9, 3, 1]) for tokens, _ in answers.values()]
    return np.bincount(index, minlength=len(TEXTS)) / num_samples, runner.num_forwards


def distance(frequencies):
    return 0.5 * float(np.abs(frequencies - joint()).sum())


def steps(count, **more):
    """Everything moves by 1 / count in a step, and nothing is ready before t = 0."""
    step = 1 / count
    return {
        "width": LENGTH,
        "evo": {
            "delta_min": step,
            "delta_max": step,
            "finalize_uncertainty": 0.0,
            "jump_uncertainty": 0.0,
            **more,
        },
    }


def adaptive(least, most, finalize, **more):
    return {
        "width": LENGTH,
        "evo": {
            "delta_min": least,
            "delta_max": most,
            "finalize_uncertainty": finalize,
            "jump_uncertainty": 0.0,
            "t_plan": 1.0,
            **more,
        },
    }


# The distance of so many exact samples is 0.026 on average here; one in a thousand exceeds 0.051.
CASES = {
    "diagonal, 32 Euler steps": (steps(32), 0.06),
    "diagonal, 8 Euler steps": (steps(8), 0.08),
    "diagonal, 4 Euler steps": (steps(4), 0.13),
    "diagonal, 8 Heun steps": (steps(8, ode="heun"), 0.07),
    "staircase, 16 steps for every token": ({**steps(16), "width": 1}, 0.06),
    "AR: one position, one jump": ({**steps(1), "width": 1}, 0.06),
    "adaptive, small steps": (adaptive(1 / 32, 1 / 8, 0.1), 0.06),
    "adaptive, middle steps": (adaptive(1 / 16, 1 / 4, 0.1), 0.07),
    "adaptive, large steps": (adaptive(1 / 8, 1 / 2, 0.2), 0.09),
}


@pytest.mark.parametrize("name", CASES)
def test_every_path_of_the_flow_gives_the_joint_distribution(name):
    decoding, largest = CASES[name]
    frequencies, _ = sample(decoding)
    assert distance(frequencies) < largest


def test_where_nothing_is_ever_certain_one_position_after_the_other_is_drawn():
    patience = 3
    evo = {
        "delta_min": 0.0,
        "delta_max": 0.0,
        "finalize_uncertainty": 0.9,
        "jump_uncertainty": 0.9,
        "t_plan": 1.0,
        "max_refine_steps": patience,
    }
    uniform = np.full(len(TEXTS), 1 / len(TEXTS))
    frequencies, num_forwards = sample({"width": LENGTH, "evo": evo}, weights=uniform)
    assert num_forwards == LENGTH * patience
    assert 0.5 * np.abs(frequencies - uniform).sum() < 0.06


def test_one_jump_of_all_tokens_forgets_that_they_depend_on_one_another():
    frequencies, num_forwards = sample(steps(1))
    product = np.ones(len(TEXTS))
    for place in range(LENGTH):
        share = np.array([joint()[TEXTS[:, place] == s].sum() for s in range(SYMBOLS)])
        product *= share[TEXTS[:, place]]
    assert 0.5 * np.abs(frequencies - product).sum() < 0.06
    assert distance(frequencies) > 0.25
    # The prompt's one row settles with the first canvas.
    assert num_forwards <= 3


def independent():
    """Texts of three symbols drawn one by one, not all as likely."""
    one = np.array([0.6, 0.3, 0.1])
    return np.prod(one[TEXTS], axis=1)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_flow_ends_in_the_tempered_distribution(temperature):
    """Of tokens that do not depend on each other: noise and posterior of a temperature belong
    together, so steps of the flow, not only the draw at its end, have to know it."""
    step = {"delta_min": 1 / 16, "delta_max": 1 / 16}
    certain = {"finalize_uncertainty": 0.0, "jump_uncertainty": 0.0, "max_refine_steps": 32}
    found, _ = sample({"evo": {**step, **certain}}, weights=independent(), temperature=temperature)
    wanted = independent() ** (1 / temperature)
    wanted /= wanted.sum()
    assert np.abs(found - wanted).sum() / 2 < 0.06
    assert np.abs(found - independent()).sum() / 2 > 0.12


def test_a_greedy_flow_takes_the_likeliest_tokens_whatever_its_seed():
    step = {"delta_min": 1 / 8, "delta_max": 1 / 8, "jump_uncertainty": 0.0}
    found, _ = sample(
        {"evo": {**step, "finalize_uncertainty": 0.0, "max_refine_steps": 16}},
        num_samples=20,
        weights=independent(),
        temperature=0.0,
    )
    assert found[0] == 1.0
