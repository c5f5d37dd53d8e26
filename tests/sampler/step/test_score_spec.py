"""What each scored row is asked for."""

from tests.tiny import hash_engine, request, run_all


def specs_of(*requests):
    """The specs of all steps in which every request draws a token."""
    engine, specs = hash_engine(), []
    run = engine.runner.run

    def keep(step, spec):
        if step.scored.rows.size == len(requests):
            specs.append((step.scored.seats.tolist(), spec))
        return run(step, spec)

    engine.runner.run = keep
    run_all(engine, *requests)
    return specs


def test_only_rows_that_need_all_their_logits_are_wide():
    plain = request("plain", [3, 4], temperature=1.0)
    wide = [
        request("top-p", [5, 6], temperature=1.0, top_p=0.9),
        request("top-k", [7, 8], temperature=1.0, top_k=3),
        request("min-p", [9, 10], temperature=1.0, min_p=0.1),
        request("listed", [11, 12], logprobs=2),
    ]
    specs = specs_of(plain, *wide)
    assert specs
    for seats, spec in specs:
        assert seats == sorted(seats), "rows come in the order of the requests"
        assert spec.wide_rows.tolist() == [1, 2, 3, 4]


def test_plain_rows_ask_for_nothing_wide():
    for _, spec in specs_of(request("a", [3, 4]), request("b", [5], logprobs=0)):
        assert spec.wide_rows is None
