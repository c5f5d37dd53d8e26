"""`/metrics`: the names that dashboards query, with the values of what has happened."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.watch.metrics import length_buckets
from tests.server.scripted_engine import ScriptedEngine, saying

pytestmark = pytest.mark.anyio

# What the stock dashboards of vLLM query.
DASHBOARD_SERIES = (
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:e2e_request_latency_seconds_sum",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:request_time_per_output_token_seconds_bucket",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:kv_cache_usage_perc",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket",
    "vllm:request_success_total",
    "vllm:request_queue_time_seconds_sum",
    "vllm:request_prefill_time_seconds_sum",
    "vllm:request_decode_time_seconds_sum",
    "vllm:request_max_num_generation_tokens_sum",
    "vllm:iteration_tokens_total_bucket",
    "vllm:cache_config_info",
    "vllm:num_preemptions_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
)


async def _samples(served):
    text = (await served.client.get("/metrics")).text
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample)
    return samples


@pytest.mark.parametrize("name", DASHBOARD_SERIES)
async def test_every_series_of_the_stock_dashboards_is_there(serve, name):
    async with serve() as served:
        samples = await _samples(served)
    assert {sample.labels["model_name"] for sample in samples[name]} == {"tiny"}
    assert {sample.labels["engine"] for sample in samples[name]} == {"0"}


async def test_without_compatibility_only_our_own_names_are_there(serve):
    async with serve(metrics_compat="none") as served:
        await served.chat()
        samples = await _samples(served)
    assert [name for name in samples if name.startswith("vllm:")] == []
    assert samples["estuary_requests_finished_total"][0].value == 1


async def test_the_choices_of_the_balance_are_shown(serve):
    engine = ScriptedEngine(modes=("ar", "diffusion", "speculative"))
    engine.metrics.widths_chosen = {0: 5, 8: 2}
    engine.metrics.width_switches = 3
    engine.metrics.row_price_tokens = 0.25
    engine.metrics.step_row_s = 1e-5
    async with serve(engine) as served:
        samples = await _samples(served)
    choices = {
        sample.labels["width"]: sample.value for sample in samples["estuary_balance_choices_total"]
    }
    assert choices == {"0": 5, "8": 2}
    assert samples["estuary_balance_switches_total"][0].value == 3
    assert samples["estuary_row_price_tokens"][0].value == 0.25
    assert samples["estuary_step_row_seconds"][0].value == 1e-5


async def test_the_engines_numbers_are_shown(serve):
    engine = ScriptedEngine(modes=("ar", "diffusion", "speculative"))
    engine.metrics.num_running = 3
    engine.metrics.pages_used, engine.metrics.pages_total = 25, 100
    engine.metrics.pages_open = 4
    engine.metrics.rows_drafted = 7
    engine.metrics.tokens_verified = 5
    engine.metrics.step_rows.observe(20.0)
    async with serve(engine) as served:
        samples = await _samples(served)
    rows = {sample.labels["kind"]: sample.value for sample in samples["estuary_rows_total"]}
    tokens = {sample.labels["kind"]: sample.value for sample in samples["estuary_tokens_total"]}
    buckets = {
        sample.labels["le"]: sample.value
        for sample in samples["vllm:iteration_tokens_total_bucket"]
    }
    assert samples["vllm:num_requests_running"][0].value == 3
    assert samples["vllm:kv_cache_usage_perc"][0].value == 0.25
    assert samples["estuary_pages_open"][0].value == 4
    assert rows == {"settle": 0, "verify": 0, "draft": 7}
    assert tokens == {"ar": 0, "diffusion": 0, "verified": 5}
    assert (buckets["16.0"], buckets["32.0"], buckets["+Inf"]) == (0, 1, 1)
    assert samples["vllm:diffusion_num_canvas_positions_total"][0].value == 7
    assert samples["vllm:spec_decode_num_draft_tokens_total"][0].value == 0


async def test_a_model_that_does_not_draft_has_no_such_series(serve):
    async with serve() as served:
        samples = await _samples(served)
    assert "vllm:diffusion_num_canvas_positions_total" not in samples
    assert "vllm:spec_decode_num_draft_tokens_total" not in samples


async def test_finished_requests_are_observed(serve):
    async with serve(ScriptedEngine(saying("hello"))) as served:
        await served.chat()
        await served.chat(max_tokens=2)
        await served.chat(stream=True, stop="ll")
        samples = await _samples(served)
    reasons = {
        sample.labels["finished_reason"]: sample.value
        for sample in samples["vllm:request_success_total"]
    }
    assert reasons == {"stop": 2, "length": 1, "abort": 0, "error": 0}
    assert samples["vllm:e2e_request_latency_seconds_count"][0].value == 3
    assert samples["vllm:request_generation_tokens_sum"][0].value == 6 + 2 + 4
    assert samples["vllm:time_to_first_token_seconds_count"][0].value == 3
    assert samples["vllm:inter_token_latency_seconds_count"][0].value == 5 + 1 + 3
    assert samples["vllm:request_params_n_count"][0].value == 3


async def test_http_requests_are_counted_by_route_template(serve):
    async with serve() as served:
        await served.chat()
        await served.client.get("/v1/models/tiny")
        await served.client.get("/some/random/path")
        samples = await _samples(served)
    counted = {
        (sample.labels["handler"], sample.labels["method"], sample.labels["status"]): sample.value
        for sample in samples["http_requests_total"]
    }
    assert counted == {
        ("/v1/chat/completions", "POST", "2xx"): 1,
        ("/v1/models/{name:path}", "GET", "2xx"): 1,
        ("unmatched", "GET", "4xx"): 1,
    }
    assert samples["estuary_http_requests_active"][0].value == 1


def test_length_buckets_end_with_the_limit():
    assert length_buckets(100) == (1, 2, 5, 10, 20, 50, 100)
    assert length_buckets(99) == (1, 2, 5, 10, 20, 50)
