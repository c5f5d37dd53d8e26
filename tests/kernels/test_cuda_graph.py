from dataclasses import replace

import pytest
import torch

from kernels import PagedBatch, plan_attention
from kernels.attention.paged_attention_kernel import launch_paged_attention
from kernels.cuda_graph import CapturedSteps, bucket_for, padding_batch, record_graph
from tests.kernels.batches import any_order, causal, dense_attention, make_case

BUCKET = {"num_rows": 32, "num_spans": 8, "num_pages": 12, "max_span": 4, "max_limit": 192}
NAMES = ("span_starts", "page_table", "limits", "window_starts", "window_stops")


@pytest.mark.parametrize(("count", "bucket"), [(1, 1), (2, 4), (4, 4), (5, 16), (17, None)])
def test_smallest_bucket_that_holds(count, bucket):
    assert bucket_for(count, (1, 4, 16)) == bucket


def run_again(work):
    outputs = tuple(output.clone() for output in work())

    def replay():
        for held, new in zip(outputs, work(), strict=True):
            held.copy_(new)

    return replay, outputs


def padding(device, *, has_windows=True):
    return padding_batch(**BUCKET, has_windows=has_windows, device=device)


def named(batch):
    tensors = {name: getattr(batch, name) for name in (*NAMES, "slots")}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def test_padding_rows_form_one_span_that_sees_and_stores_nothing():
    batch = padding(torch.device("cpu"))
    assert batch.span_starts.tolist() == [0, 32, 32, 32, 32, 32, 32, 32, 32]
    assert batch.slots.eq(-1).all()
    assert batch.limits.eq(0).all()
    assert batch.window_stops.eq(0).all()
    assert (batch.num_rows, batch.num_spans) == (32, 8)
    assert padding(torch.device("cpu"), has_windows=False).window_starts is None


def captured_names(device):
    """Captured steps that hand out what they were given."""
    steps = CapturedSteps(lambda inputs: tuple(inputs[name] for name in sorted(inputs)), run_again)
    steps.capture("bucket", named(padding(device)))
    return steps


def run_named(steps, inputs):
    outputs = steps.run("bucket", inputs)
    return dict(zip(sorted((*NAMES, "slots")), outputs, strict=True))


def test_a_step_fills_the_front_and_the_rest_is_padding():
    case = make_case((causal(20, 3), any_order(9, 2, 2)))
    filled = run_named(captured_names(torch.device("cpu")), named(case.batch))
    assert filled["span_starts"].tolist() == [0, 3, 7, 32, 32, 32, 32, 32, 32]
    assert torch.equal(filled["slots"][:7], case.batch.slots)
    assert filled["slots"][7:].eq(-1).all()
    assert filled["limits"][7:].eq(0).all()
    assert torch.equal(filled["page_table"][:2, :2], case.batch.page_table)


def test_nothing_of_a_larger_step_stays_behind():
    steps = captured_names(torch.device("cpu"))
    small, large = make_case((causal(5, 1),)), make_case((causal(20, 9), any_order(9, 2, 2)))
    fresh = {name: tensor.clone() for name, tensor in run_named(steps, named(small.batch)).items()}
    run_named(steps, named(large.batch))
    again = run_named(steps, named(small.batch))
    for name in ("span_starts", "slots", "limits", "window_starts", "window_stops"):
        assert torch.equal(again[name], fresh[name]), name


def test_an_input_that_is_not_given_is_padding_again():
    steps = captured_names(torch.device("cpu"))
    whole = named(make_case((any_order(9, 2, 2),)).batch)
    assert run_named(steps, whole)["window_stops"].any()
    windowless = {name: tensor for name, tensor in whole.items() if "window" not in name}
    assert not run_named(steps, windowless)["window_stops"].any()


@pytest.mark.parametrize("name", ["slots", "span_starts", "page_table"])
def test_an_input_larger_than_its_bucket_is_refused(name):
    inputs = named(padding(torch.device("cpu")))
    inputs[name] = torch.cat((inputs[name], inputs[name]), dim=inputs[name].ndim - 1)
    with pytest.raises(ValueError, match=f"{name} .* does not fit a bucket"):
        captured_names(torch.device("cpu")).run("bucket", inputs)


def test_a_key_has_to_be_captured_first():
    steps = captured_names(torch.device("cpu"))
    assert "bucket" in steps
    assert "other" not in steps
    with pytest.raises(KeyError):
        steps.run("other", {})


def test_graphs_need_a_gpu():
    with pytest.raises(ValueError, match="captured on CUDA devices, got cpu"):
        record_graph(torch.device("cpu"))


@pytest.mark.kernel
def test_padded_batch_gives_the_same_rows(device):
    case = make_case((causal(20, 3), any_order(9, 2, 2), causal(90, 1)), device=device)
    filled = run_named(captured_names(device), named(case.batch))
    padded = PagedBatch(**filled, max_span=BUCKET["max_span"], max_limit=BUCKET["max_limit"])
    q = torch.zeros(32, *case.q.shape[1:], device=device)
    q[: case.q.shape[0]] = case.q
    output = launch_paged_attention(q, case.keys, case.values, padded, num_splits=2, scale=0.25)
    rows = case.q.shape[0]
    expected = dense_attention(case, 0.25)
    torch.testing.assert_close(output[:rows].double(), expected, atol=2e-5, rtol=2e-5)
    assert output[rows:].eq(0).all()


@pytest.mark.kernel
def test_a_bucket_fixes_how_many_programs_share_a_prefix(device):
    """Whatever fills it; and a bucket of few rows and long prefixes has many."""
    steps = captured_names(device)
    cases = ((causal(3, 1),), (causal(90, 3), any_order(50, 2, 2)), (causal(150, 1),) * 4)
    splits = set()
    for spans in cases:
        run_named(steps, named(make_case(spans, device=device).batch))
        filled = PagedBatch(
            **dict(steps._captured["bucket"].inputs),
            max_span=BUCKET["max_span"],
            max_limit=BUCKET["max_limit"],
        )
        plan = plan_attention(filled, page_size=16, num_heads=4, num_kv_heads=2)
        splits.add(plan.num_splits)
    assert len(splits) == 1
    long = replace(filled, max_limit=1 << 17)
    assert plan_attention(long, page_size=16, num_heads=4, num_kv_heads=2).num_splits > 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_replay_with_other_data_gives_what_running_gives(device):
    cases = [make_case((causal(start, 3), causal(40, 1)), device=device) for start in (7, 60)]
    pages = torch.zeros(2, 64, 16, 2, 16, device=device)
    captured = CapturedSteps(lambda inputs: (attend(inputs),), record_graph(device))
    blank = named(padding(device, has_windows=False))
    blank |= {"q": torch.zeros(32, 4, 16, device=device), "pages": pages}
    captured.capture("bucket", blank)
    for case in cases:
        pages[0, : len(case.keys)], pages[1, : len(case.values)] = case.keys, case.values
        (output,) = captured.run("bucket", {"q": case.q, "pages": pages, **named(case.batch)})
        expected = dense_attention(case, 0.25)
        torch.testing.assert_close(output[:4].double(), expected, atol=2e-5, rtol=2e-5)
    assert captured.num_captured == 1


def attend(inputs):
    batch = PagedBatch(
        span_starts=inputs["span_starts"],
        page_table=inputs["page_table"],
        slots=inputs["limits"].long(),
        limits=inputs["limits"],
        max_span=3,
        max_limit=192,
    )
    plan = plan_attention(batch, page_size=16, num_heads=4, num_kv_heads=2)
    return launch_paged_attention(
        inputs["q"], *inputs["pages"], batch, num_splits=plan.num_splits, scale=0.25
    )
