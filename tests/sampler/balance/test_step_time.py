import itertools

import numpy as np
import pytest

from sampler.balance.step_time import StepShape, StepTimeModel
from sampler.engine_process import warm_up
from tests.sampler.test_latent_engine import NEXT as LATENT
from tests.tiny import hash_engine


def line(rows, scored_rows, entries):
    return 4e-3 + 1.5e-3 * rows + 0.3e-3 * scored_rows + 1e-7 * entries


def knee(rows, scored_rows, entries):
    return max(4e-3, 25e-6 * rows) + 2e-6 * scored_rows + 3e-8 * entries


def fitted(machine, *, num_steps=600, noise=0.0, outliers=0.0, most_rows=1024):
    generator = np.random.default_rng(3)
    model = StepTimeModel()
    for _ in range(num_steps):
        rows = int(2 ** generator.uniform(0, np.log2(most_rows)))
        scored = int(generator.integers(1, rows + 1))
        entries = int(generator.integers(0, 50_000))
        seconds = machine(rows, scored, entries) * generator.lognormal(0, noise)
        seconds *= 30 if generator.random() < outliers else 1
        model.observe(StepShape(rows, scored, entries), seconds)
    model.fit()
    return model


def predicted(model, rows, scored_rows=1, entries=0):
    return float(model.predict(np.array([rows]), np.array([scored_rows]), entries)[0])


def test_an_exact_line_is_found():
    report = fitted(line).report()
    assert report.fixed_s == pytest.approx(4e-3, rel=1e-3)
    assert report.row_s == pytest.approx(1.5e-3, rel=1e-3)
    assert report.scored_row_s == pytest.approx(0.3e-3, rel=1e-3)
    assert report.cache_entry_s == pytest.approx(1e-7, rel=1e-2)
    assert report.bends == ()


@pytest.mark.parametrize("rows", [1, 16, 100, 200, 400, 1000])
def test_a_knee_is_followed(rows):
    model = fitted(knee, noise=0.02)
    assert predicted(model, rows) == pytest.approx(knee(rows, 1, 0), rel=0.06)


def test_below_the_knee_a_row_costs_nothing_and_above_it_its_time():
    model = fitted(knee, noise=0.02)
    assert model.row_price(64) < 3e-6
    assert model.row_price(400) == pytest.approx(25e-6, rel=0.15)


@pytest.mark.parametrize("machine", [line, knee])
def test_outliers_move_nothing(machine):
    model = fitted(machine, noise=0.03, outliers=0.05)
    assert predicted(model, 32, 32, 10_000) == pytest.approx(machine(32, 32, 10_000), rel=0.05)


def test_time_never_falls_with_work():
    generator = np.random.default_rng(0)
    model = StepTimeModel()
    for rows in generator.integers(1, 500, 300).tolist():
        model.observe(StepShape(rows, rows, rows), float(generator.uniform(1e-3, 1e-2)))
    model.fit()
    rows = np.arange(1.0, 600.0)
    assert (model.coefficients >= 0).all()
    assert (np.diff(model.predict(rows, rows, 0.0)) >= -1e-12).all()


def test_a_machine_that_becomes_slower_is_noticed():
    model = fitted(line, num_steps=600)
    generator = np.random.default_rng(1)
    for rows in generator.integers(1, 512, 4000).tolist():
        model.observe(StepShape(rows, 1, 0), 2 * line(rows, 1, 0))
    model.fit()
    assert predicted(model, 100) == pytest.approx(2 * line(100, 1, 0), rel=0.1)


def test_a_steady_load_does_not_push_out_what_is_known_of_others():
    model = fitted(knee, num_steps=600)
    for _ in range(3000):
        model.observe(StepShape(8, 8, 1000), knee(8, 8, 1000))
    assert predicted(model, 400) == pytest.approx(knee(400, 1, 0), rel=0.1)


def test_before_any_step_there_is_a_guess():
    model = StepTimeModel()
    model.fit()
    assert predicted(model, 10) > predicted(model, 1) > 0
    assert model.report().num_steps == 0


def test_a_step_of_no_time_is_ignored():
    model = StepTimeModel()
    model.observe(StepShape(1, 1, 1), 0.0)
    assert model.num_steps == 0


def test_warming_up_runs_steps_of_all_sizes_and_fits():
    engine = hash_engine(num_pages=400, context=600, max_rows=600, max_sequences=64)
    warm_up(engine, clock=lambda: 0.0)
    assert engine.step_time.num_steps > 40
    assert engine.metrics.steps == 0
    assert engine.scheduler.pool.num_free == 400


def test_warming_up_stops_in_time():
    engine = hash_engine(num_pages=400, context=600, max_rows=600, max_sequences=64)
    warm_up(engine, clock=itertools.count().__next__)
    assert engine.step_time.num_steps < 15


def test_weights_of_latents_are_paid_once_by_steps_that_have_them():
    generator = np.random.default_rng(5)
    model = StepTimeModel()
    for _ in range(300):
        rows = int(generator.integers(1, 40))
        has_latents = bool(generator.integers(2)) and rows > 1
        seconds = line(rows, rows, 0) + 3e-3 * has_latents
        model.observe(StepShape(rows, rows, 0, has_latents=has_latents), seconds)
    model.fit()
    assert model.report().latents_s == pytest.approx(3e-3, rel=0.01)
    rows = np.array([4.0, 4.0])
    without, with_latents = model.predict(rows, rows, 0.0, np.array([0.0, 1.0]))
    assert with_latents - without == pytest.approx(3e-3, rel=0.01)


def test_warming_up_runs_latents_of_models_that_have_them():
    engine = hash_engine(LATENT, num_pages=400, context=600, max_rows=600, max_sequences=64)
    shapes = []
    engine.step_time.observe = lambda shape, _seconds: shapes.append(shape)
    warm_up(engine, clock=lambda: 0.0)
    assert {shape.has_latents for shape in shapes} == {False, True}
    rows = {shape.rows for shape in shapes if shape.has_latents}
    assert min(rows) <= 4
    assert max(rows) >= 64
