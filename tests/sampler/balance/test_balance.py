"""The choice of widths, on its own and through the engine; what it may never change."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sampler.balance.balance import WIDTHS, Balance, Load, branch_costs, canvas_costs, rank_costs
from sampler.balance.step_time import StepShape, StepTimeModel
from tests.sampler.test_canvas_engine import LENGTHS, RANKED, TWO_MODE, requests_for
from tests.tiny import VOCABULARY, HashRunner, hash_engine, request, run_all

EASY, HARD = 0.9, 0.02


def memory_bound(rows):
    """A machine whose steps take the same time up to 256 rows."""
    return max(4e-3, rows * 4e-3 / 256)


def compute_bound(rows):
    return 1e-4 + 2e-3 * rows


def balance_for(machine, num_seats, *, cap=32, is_seeded=False, costs=None):
    step_time = StepTimeModel()
    for rows in (*range(1, 40), *range(40, 400, 10), *range(400, 3000, 100)):
        step_time.observe(StepShape(rows, 1, 0), machine(rows))
        step_time.observe(StepShape(rows, rows, 1000), machine(rows))
    step_time.fit()
    balance = Balance(num_seats=num_seats, costs=costs or canvas_costs(), step_time=step_time)
    for seat in range(num_seats):
        balance.seat(seat, cap=cap, is_seeded=is_seeded)
    return balance


def load(num_seats, *, budget=4096, pending=0, prompts=0, others=0):
    return Load(
        running=np.arange(num_seats),
        budget_rows=budget,
        pending_rows=pending,
        prompt_rows=prompts,
        other_rows=others,
        num_others=others,
        cache_entries=100,
    )


def observe(balance, seats, hazard, *, num_rounds=30, offered=15):
    generator = np.random.default_rng(2)
    for _ in range(num_rounds):
        hits = generator.random((seats.size, offered)) < hazard
        confirmed = np.where(hits.all(1), offered, hits.argmin(1))
        balance.observe_rounds(
            seats, np.full(seats.size, offered), confirmed, np.full(seats.size, 0.05)
        )


def widths_after(hazard, machine, num_seats, **options):
    balance = balance_for(machine, num_seats, **options)
    seats = np.arange(num_seats)
    observe(balance, seats, hazard)
    return balance.choose(seats, load(num_seats))


def test_an_idle_machine_drafts_easy_text_widely():
    assert widths_after(EASY, memory_bound, 1).min() >= 16


def test_an_idle_machine_decodes_hard_text_by_ar():
    assert widths_after(HARD, memory_bound, 1).max() == 0


def test_a_saturated_machine_decodes_by_ar():
    assert widths_after(EASY, memory_bound, 256).mean() < 2
    assert widths_after(EASY, compute_bound, 16).max() == 0


def test_widths_fall_as_sequences_come():
    means = [widths_after(EASY, memory_bound, count).mean() for count in (4, 16, 64, 256)]
    assert means == sorted(means, reverse=True)
    assert means[0] > 4 * means[2]


@pytest.mark.parametrize(("seconds", "drafts"), [(0.2e-3, True), (8e-3, False)])
def test_latents_are_run_where_they_gain_more_than_their_weights_cost(seconds, drafts):
    step_time = StepTimeModel()
    for rows in range(1, 300):
        step_time.observe(StepShape(rows, rows, 0), 4e-3)
        step_time.observe(StepShape(rows, rows, 0, has_latents=True), 4e-3 + seconds)
    step_time.fit()
    balance = Balance(num_seats=1, costs=branch_costs(), step_time=step_time)
    balance.seat(0, cap=8, is_seeded=False)
    observe(balance, np.arange(1), 0.5, offered=3)
    # Fewer than three tokens in a step of three times the time are no gain.
    widths = [int(balance.choose(np.arange(1), load(1))[0]) for _ in range(5)]
    assert all(width > 0 for width in widths) == drafts
    assert any(widths) == drafts


def test_rows_go_to_the_sequences_that_gain_most_from_them():
    balance = balance_for(memory_bound, 32)
    observe(balance, np.arange(16), EASY)
    observe(balance, np.arange(16, 32), HARD)
    widths = balance.choose(np.arange(32), load(32))
    assert widths[:16].min() >= 8
    assert widths[16:].max() == 0


def test_steps_stay_below_the_knee():
    widths = widths_after(EASY, memory_bound, 24)
    assert 150 <= np.maximum(widths, 1).sum() <= 300


@pytest.mark.parametrize("budget", [24, 40, 100])
@pytest.mark.parametrize("costs", [canvas_costs(), rank_costs()], ids=["canvas", "rank"])
def test_the_row_budget_is_kept(budget, costs):
    balance = balance_for(memory_bound, 12, costs=costs)
    observe(balance, np.arange(12), EASY)
    widths = balance.choose(np.arange(12), load(12, budget=budget))
    assert costs.most_rows[np.searchsorted(WIDTHS, widths)].sum() <= budget


def test_the_least_urgent_are_narrowed_first():
    balance = balance_for(memory_bound, 2)
    observe(balance, np.arange(2), EASY)
    widths = balance.choose(np.array([1, 0]), load(2, budget=48))
    assert widths.tolist() == [32, 16]


def test_without_a_row_to_spare_everybody_still_decodes_by_ar():
    balance = balance_for(memory_bound, 12)
    observe(balance, np.arange(12), EASY)
    assert balance.choose(np.arange(12), load(12, budget=0)).tolist() == [0] * 12


@pytest.mark.parametrize("cap", [1, 3, 6, 32])
def test_no_round_is_wider_than_its_request_allows(cap):
    widths = widths_after(EASY, memory_bound, 1, cap=cap)
    assert widths.tolist() == [cap if cap > 1 else 0]


def test_rows_that_verify_now_leave_less_to_draft():
    sums = []
    for pending in (0, 250):
        balance = balance_for(memory_bound, 8)
        observe(balance, np.arange(8), EASY)
        sums.append(balance.choose(np.arange(8), load(8, pending=pending)).sum())
    assert sums[1] < 0.8 * sums[0]


def test_a_step_that_runs_prompts_drafts_less():
    sums = []
    for prompts in (0, 500):
        balance = balance_for(memory_bound, 8)
        observe(balance, np.arange(8), EASY)
        sums.append(balance.choose(np.arange(8), load(8, prompts=prompts)).sum())
    assert sums[1] < sums[0]


def test_sequences_of_other_modes_leave_less_to_draft():
    sums = []
    for others in (0, 240):
        balance = balance_for(memory_bound, 8)
        observe(balance, np.arange(8), EASY)
        sums.append(balance.choose(np.arange(8), load(8, others=others)).sum())
    assert sums[1] < 0.5 * sums[0]


def test_widths_do_not_flutter():
    balance = balance_for(memory_bound, 16)
    generator = np.random.default_rng(0)
    seats = np.arange(16)
    for _ in range(50):
        observe(balance, seats, 0.9, num_rounds=1)
    switches = balance.counts.num_switches
    for _ in range(20):
        noise = generator.normal(0, 0.02)
        balance.step_time.observe(StepShape(128, 1, 0), memory_bound(128) * (1 + noise))
        balance.choose(seats, load(16))
    assert balance.counts.num_switches - switches <= 2 * seats.size


def test_a_hard_text_is_probed_rarely_and_ever_more_so():
    balance = balance_for(memory_bound, 1)
    observe(balance, np.arange(1), HARD)
    chosen = []
    for _ in range(1000):
        width = int(balance.choose(np.arange(1), load(1))[0])
        chosen.append(width)
        if width:
            balance.observe_rounds(
                np.zeros(1, dtype=int), np.array([width - 1]), np.zeros(1, dtype=int), np.ones(1)
            )
        else:
            balance.observe_singles(np.zeros(1, dtype=int), np.ones(1))
    drafts = np.flatnonzero(chosen)
    assert 1 <= drafts.size <= 16
    assert (drafts > 500).sum() < (drafts < 500).sum()


def test_a_seeded_request_gets_widths_from_its_own_text_only():
    alone = balance_for(memory_bound, 64, is_seeded=True)
    crowded = balance_for(compute_bound, 64, is_seeded=True)
    observe(crowded, np.arange(1, 64), HARD, num_rounds=50)
    for balance in (alone, crowded):
        observe(balance, np.arange(1), 0.9)
    ours = np.arange(1)
    first = alone.choose(ours, load(1))
    assert first.tolist() == crowded.choose(ours, load(64, pending=900, others=900)).tolist()
    assert first[0] > 0


def test_seeded_and_other_requests_share_a_step():
    balance = balance_for(compute_bound, 2)
    balance.seat(0, cap=32, is_seeded=True)
    observe(balance, np.arange(2), EASY)
    widths = balance.choose(np.arange(2), load(2))
    assert widths[0] > 0
    assert widths[1] == 0


class AgreeingRunner(HashRunner):
    """Draws the same at most positions, whatever a row sees: most drafts are confirmed."""

    def run(self, step, spec):
        scores = super().run(step, spec)
        own = step.scored.positions
        agrees = (own % 7 != 0) & (scores.token != VOCABULARY - 1)
        token = np.where(agrees, own * 5 % (VOCABULARY - 1), scores.token)
        return replace(scores, token=token, argmax=token)


class AnyWidths(Balance):
    """Chooses as it likes."""

    def choose(self, starting, _load):
        return np.random.default_rng(self.acceptance.num_rounds).choice(
            [0, 1, 2, 3, 5, 8, 11], starting.size
        )


def agreeing_engine(rule, *, balance=None, **options):
    # A machine on which every step takes the same time: drafts cost nothing.
    engine = hash_engine(rule, eos=(), clock=itertools.count().__next__, **options)
    engine.runner = AgreeingRunner(engine.scheduler.pool.num_pages, engine.table.page_size)
    if balance is not None:
        costs = rank_costs() if rule is RANKED else canvas_costs()
        engine.scheduler.balance = balance(num_seats=engine.table.num_seats, costs=costs)
    return engine


# In RANKED the order is part of what is asked for; at 0 it is the one of AR.
ONE_BY_ONE = {"two_mode": {"mode": "ar"}, "ranked": {"mode": "diffusion", "alpha_0": 0.0}}
AUTO = {"two_mode": {"mode": "auto"}, "ranked": {"mode": "auto", "alpha_0": 0.0}}
FAMILIES = {"two_mode": TWO_MODE, "ranked": RANKED}


def tokens_of(answers):
    return {name: tokens for name, (tokens, _) in answers.items()}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("balance", [None, AnyWidths], ids=["balance", "any_widths"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [{}, {"max_rows": 40}, {"num_pages": 17}, {"max_sequences": 2}],
    ids=["free", "few_rows", "few_pages", "few_seats"],
)
def test_widths_change_no_token(family, balance, options, temperature):
    rule, params = FAMILIES[family], {"temperature": temperature}
    plain = run_all(agreeing_engine(rule), *requests_for(ONE_BY_ONE[family], **params))
    engine = agreeing_engine(rule, balance=balance, **options)
    chosen = run_all(engine, *requests_for(AUTO[family], **params))
    assert tokens_of(chosen) == tokens_of(plain)
    assert {name: len(tokens) for name, tokens in tokens_of(chosen).items()} == LENGTHS


@pytest.mark.parametrize("num_others", [0, 3, 7])
def test_the_load_changes_no_token(num_others):
    plain = run_all(agreeing_engine(TWO_MODE), request("x", [5, 6], max_tokens=40, seed=None))
    engine = agreeing_engine(TWO_MODE)
    others = [request(str(i), [i + 1] * 9, max_tokens=30) for i in range(num_others)]
    answers = run_all(engine, request("x", [5, 6], max_tokens=40), *others)
    assert answers["x"][0] == plain["x"][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_easy_text_takes_fewer_steps_than_tokens(family):
    engine = agreeing_engine(FAMILIES[family])
    one = request("x", [5, 6], max_tokens=96, decoding=AUTO[family])
    _, deltas = run_all(engine, one)["x"]
    assert deltas[-1].stats.steps < 0.75 * 96
    assert deltas[-1].stats.verified_tokens > 40
    assert sum(engine.metrics.widths_chosen.values()) > engine.metrics.widths_chosen[0]


def test_a_sequence_whose_text_becomes_hard_is_handed_to_ar():
    balance = balance_for(memory_bound, 4)
    seats = np.arange(4)
    observe(balance, seats, EASY)
    assert balance.choose(seats, load(4)).min() > 0
    observe(balance, seats, 0.0, num_rounds=5)
    assert balance.choose(seats, load(4)).max() == 0
    assert balance.counts.num_handed_to_ar == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_text_that_does_not_converge_takes_hardly_more_steps_than_ar(family):
    engine = hash_engine(FAMILIES[family], eos=())
    one = request("x", [5, 6], max_tokens=120, decoding=AUTO[family])
    _, deltas = run_all(engine, one)["x"]
    assert deltas[-1].stats.steps <= 1.1 * 120
    # In ranks, a first draft sees what its check sees and is always confirmed.
    chosen = engine.metrics.widths_chosen
    assert chosen[16] + chosen[32] < 0.1 * sum(chosen.values())


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"frequency_penalty": 0.5}])
def test_a_diffusion_canvas_that_does_not_converge_goes_on_by_ar(params):
    decoding = {"mode": "diffusion", "confidence": 1.0, "max_steps": 2, "block_length": 8}
    engine = hash_engine(TWO_MODE, eos=())
    one = request("x", [5, 6], max_tokens=40, decoding=decoding, seed=3, **params)
    tokens, deltas = run_all(engine, one)["x"]
    assert len(tokens) == 40
    assert engine.metrics.canvases_handed_to_ar == 5
    stats = deltas[-1].stats
    assert stats.ar_tokens + stats.diffusion_tokens == 40
    assert stats.ar_tokens >= 5 * (1 + 8 - 3)
    assert sum(engine.runner.row_log) < 5 * (2 * 9 + 8)


def test_canvases_handed_to_ar_do_not_depend_on_the_batch():
    decoding = {"mode": "diffusion", "confidence": 0.9, "max_steps": 1}
    many = requests_for(decoding)
    alone = {one.id: run_all(hash_engine(TWO_MODE), one)[one.id][0] for one in many}
    for options in ({}, {"max_rows": 40}, {"num_pages": 17}):
        answers = run_all(hash_engine(TWO_MODE, **options), *many)
        assert tokens_of(answers) == alone


def test_a_width_in_the_request_is_the_widest_there_is():
    engine = agreeing_engine(TWO_MODE)
    run_all(engine, request("x", [5, 6], max_tokens=60, decoding={"width": 3}))
    assert max(engine.runner.row_log[1:]) == 3


def test_steps_of_a_seeded_request_do_not_depend_on_the_load():
    one = request("x", [5, 6], max_tokens=60, seed=4)
    alone = run_all(agreeing_engine(TWO_MODE, num_pages=300), one)["x"][1][-1].stats
    others = [request(str(i), [i + 1] * 9, max_tokens=50) for i in range(7)]
    engine = agreeing_engine(TWO_MODE, num_pages=300)
    crowded = run_all(engine, *others, one)["x"][1][-1].stats
    assert crowded.steps == alone.steps
    assert crowded.verified_tokens == alone.verified_tokens


def test_nobody_starves_when_rows_are_short():
    engine = agreeing_engine(TWO_MODE, max_sequences=8, max_rows=8)
    many = [request(str(i), [i + 1] * 3, max_tokens=40) for i in range(8)]
    for one in many:
        engine.submit(one)
    for _ in range(80):
        engine.step()
    seats = np.flatnonzero(engine.table.state)
    made = engine.table.final[seats] - engine.table.prompt_length[seats]
    assert (made >= 25).all()


def test_prompts_are_served_beside_wide_drafts():
    engine = agreeing_engine(TWO_MODE, max_rows=32, max_sequences=8)
    for i in range(6):
        engine.submit(request(str(i), [i + 1], max_tokens=60))
    for _ in range(10):
        engine.step()
    engine.submit(request("late", list(range(1, 31)), max_tokens=1))
    deltas = [delta for _ in range(8) for delta in engine.step().deltas]
    assert "late" in {delta.request_id for delta in deltas if delta.finish}


def test_rows_are_counted_by_what_became_of_them():
    engine = agreeing_engine(TWO_MODE)
    run_all(engine, request("x", [5, 6], max_tokens=60))
    metrics = engine.metrics
    assert metrics.rows_wasted == metrics.proposals - metrics.proposals_accepted > 0
    assert metrics.tokens_ar + metrics.tokens_verified == 60
    assert sum(metrics.accepted_entropy.counts) > 0


def test_every_step_teaches_the_step_time():
    engine = agreeing_engine(TWO_MODE)
    run_all(engine, request("x", [5, 6], max_tokens=20))
    assert engine.step_time.num_steps == engine.metrics.steps


def test_warming_up_leaves_no_trace_in_the_balance():
    engine = agreeing_engine(TWO_MODE)
    run_all(engine, request("x", [5, 6], max_tokens=60))
    engine.reset()
    assert engine.scheduler.balance.acceptance.num_rounds == 0
    assert engine.step_time.num_steps > 0
