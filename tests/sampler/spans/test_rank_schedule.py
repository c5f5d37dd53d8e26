import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampler.spans.rank_schedule import draw_schedule, strided_schedule
from tests.sampler.golden_engine import golden_cases


@given(
    length=st.integers(1, 40),
    num_steps=st.integers(1, 30),
    alpha_0=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_a_schedule_decodes_every_position_once_and_the_rest_from_left_to_right(
    length, num_steps, alpha_0, seed
):
    positions = np.arange(5, 5 + length)
    schedule = draw_schedule(
        positions, alpha_0=alpha_0, num_steps=num_steps, generator=np.random.default_rng(seed)
    )
    assert sorted(schedule.positions.tolist()) == positions.tolist()
    assert schedule.counts.sum() == length
    assert (schedule.counts > 0).all()
    parallel = int(np.flatnonzero(schedule.counts > 1).max(initial=-1)) + 1
    rest = schedule.positions[schedule.counts[: max(parallel, num_steps)].sum() :]
    assert rest.tolist() == sorted(rest.tolist())


@pytest.mark.parametrize("alpha_0", [0.0625, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [16, 128, 1024])
def test_the_mean_number_of_forwards_is_the_closed_form(alpha_0, num_steps):
    length, generator = 1024, np.random.default_rng(0)
    forwards = [
        draw_schedule(
            np.arange(length), alpha_0=alpha_0, num_steps=num_steps, generator=generator
        ).counts.size
        for _ in range(60)
    ]
    expected = num_steps * (1 - (1 - alpha_0 / num_steps) ** length) + (1 - alpha_0) * length
    assert np.mean(forwards) == pytest.approx(expected, rel=0.02)


def test_without_diffusion_the_order_is_left_to_right_one_by_one():
    schedule = draw_schedule(
        np.arange(9), alpha_0=0.0, num_steps=4, generator=np.random.default_rng(1)
    )
    assert schedule.positions.tolist() == list(range(9))
    assert schedule.counts.tolist() == [1] * 9


def test_the_strided_order_is_that_of_the_original_sampler():
    case = golden_cases("esolm")["decode_subcontext"]
    stretch = case.entry["subcontext_len"]
    schedule = strided_schedule(
        np.arange(32), alpha_0=case.entry["alpha_0"], num_parts=32 // stretch
    )
    assert schedule.positions.tolist() == case.tensors["order"][0].tolist()
    assert schedule.counts.tolist() == case.entry["counts"]
