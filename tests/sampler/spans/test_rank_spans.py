import pytest

from sampler.spans.rank_spans import RankSpans
from sampler.state.decoding import resolve_decoding
from sampler.state.sequence_table import SequenceTable
from tests.sampler.golden_engine import golden_engine, golden_model
from tests.sampler.test_canvas_engine import RANKED
from tests.tiny import request, run_all


def test_a_request_can_ask_for_the_strided_order():
    engine = golden_engine(golden_model("esolm"), context=32)
    decoding = {"mode": "diffusion", "alpha_0": 0.5, "sub_context_length": 8}
    tokens, deltas = run_all(engine, request("x", [3], max_tokens=24, decoding=decoding))["x"]
    assert len(tokens) == 24
    assert deltas[-1].stats.steps == 4 + 12


@pytest.mark.parametrize("count", [0, 1, 3])
def test_accepted_ranks_come_first_and_are_final(count):
    rule, one = RankSpans(RANKED), request("a", [5, 6], max_tokens=6, suffix=(7,))
    table = SequenceTable(num_seats=2, max_context=32, page_size=4, has_order=True)
    decoding = resolve_decoding(one.params, RANKED)
    seat = table.seat(one, decoding, number=0, seed=3, room=9)
    rule.open_sequence(table, seat, one)
    table.plan_drafts(seat, 3, widths=0)
    drafted = table.order[seat, 3:6].tolist()
    table.is_open[seat, drafted[3 - count :]] = False
    rule.accept_ranks(table, seat, count)
    assert table.final[seat] == 3 + count
    assert table.order[seat, 3:6].tolist() == drafted[3 - count :] + drafted[: 3 - count]
    assert table.order[seat, :3].tolist() == [0, 1, 8]


def test_two_sequences_keep_schedules_of_their_own():
    rule = RankSpans(RANKED)
    table = SequenceTable(num_seats=2, max_context=64, page_size=4, has_order=True)
    alone, counts = [], []
    for seed in (1, 2):
        one = request(str(seed), [5], max_tokens=24, decoding={"mode": "diffusion"})
        decoding = resolve_decoding(one.params, RANKED)
        seat = table.seat(one, decoding, number=seed, seed=seed, room=25)
        rule.open_sequence(table, seat, one)
        alone.append(table.draft_counts[seat].copy())
    for seat in (0, 1):
        while table.draft_counts[seat, table.draft_step[seat] :].any():
            counts.append((seat, table.next_scheduled(seat)))
    assert alone[0].sum() == alone[1].sum() == 24
    assert [n for seat, n in counts if seat == 1] == [n for n in alone[1].tolist() if n][1:]
