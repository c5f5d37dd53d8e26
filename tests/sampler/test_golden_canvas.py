"""Canvas decoding through the whole engine: tokens and drafting steps of the original loops."""

from dataclasses import replace

import numpy as np
import pytest

from sampler.spans.rank_spans import RankSchedule
from sampler.state.sequence_table import Stage
from tests.sampler.golden_engine import golden_cases, golden_engine, golden_model
from tests.tiny import request, run_all
from weights import RuleOverrides


def drafting_steps(engine, one):
    """Run one request; per drafting step the (position, token) pairs it filled, and the answer."""
    engine.submit(one)
    steps, tokens = [], []
    table = engine.table
    while engine.has_work:
        engine.scheduler._resume()
        before = table.is_open[0].copy()
        stage = Stage(int(table.stage[0]))
        drafted = engine.metrics.rows_drafted
        if not engine.scheduler.num_seated:
            engine.scheduler._admit(0.0)
            before, stage = table.is_open[0].copy(), Stage(int(table.stage[0]))
        output = engine.step()
        for delta in output.deltas:
            assert delta.error is None, delta.error
            tokens.extend(delta.token_ids)
        if engine.metrics.rows_drafted > drafted and stage is Stage.DRAFT:
            filled = np.flatnonzero(before & ~table.is_open[0][: before.size])
            steps.append([(int(p), int(table.tokens[0, p])) for p in filled])
    return steps, tokens


def logged(entry):
    """The same of a golden log; steps in which the original loop filled nothing are left out."""
    return [
        list(zip(step["positions"], step["tokens"], strict=True))
        for step in entry["steps"]
        if step.get("positions")
    ]


def check_transcript(engine, one, entry, expected):
    steps, tokens = drafting_steps(engine, one)
    golden = logged(entry)
    assert tokens == expected
    assert steps == golden[: len(steps)]
    assert len(golden) - len(steps) <= max_spared(entry)


def max_spared(entry):
    """Steps after the answer is known: the originals finish the block in which it ends."""
    return entry.get("block_length", entry.get("block_size", 0))


SDAR_RULES = {
    "low_confidence_dynamic": {"rule": "threshold_or_quota"},
    "low_confidence_static": {"rule": "quota"},
    "sequential": {"rule": "left_to_right", "schedule": "even"},
}


@pytest.mark.parametrize("name", ["decode_dynamic", "decode_static", "decode_dynamic_stop"])
def test_sdar_gives_the_golden_transcript(name):
    entry = golden_cases("sdar")[name].entry
    prompt = entry["prompt_ids"]
    stop = tuple(entry["stopping_criteria_idx"] or ())
    final = entry["final_ids"]
    expected = final[len(prompt) : len(prompt) + max_new(entry)]
    if stop:
        expected = expected[: expected.index(stop[0]) + 1]
    one = request(
        "x",
        prompt,
        max_tokens=max_new(entry),
        stop_token_ids=stop,
        decoding={
            **SDAR_RULES[entry["remasking_strategy"]],
            "confidence": entry["confidence_threshold"],
            "block_length": entry["block_length"],
            "steps": entry["denoising_steps"],
        },
    )
    check_transcript(golden_engine(golden_model("sdar")), one, entry, expected)


def max_new(entry):
    return len(entry["final_ids"]) - len(entry["prompt_ids"])


@pytest.mark.parametrize("name", ["decode_sequential"])
def test_sdar_left_to_right_gives_the_golden_transcript(name):
    entry = golden_cases("sdar")[name].entry
    prompt = entry["prompt_ids"]
    one = request(
        "x",
        prompt,
        max_tokens=max_new(entry),
        decoding={"rule": "left_to_right", "block_length": entry["block_length"], "quota": 1},
    )
    expected = entry["final_ids"][len(prompt) :]
    check_transcript(golden_engine(golden_model("sdar")), one, entry, expected)


@pytest.mark.parametrize("name", ["decode_threshold", "decode_scheduled", "decode_eos"])
def test_llada2_gives_the_golden_transcript(name):
    entry = golden_cases("llada2")[name].entry
    model = golden_model(
        "llada2", RuleOverrides(mask_token_id=155, block_length=entry["block_length"])
    )
    one = request(
        "x",
        entry["prompt_ids"],
        max_tokens=entry["gen_length"],
        stop_token_ids=(entry["eos_id"],),
        decoding={
            "rule": "threshold_or_quota",
            "confidence": entry["threshold"],
            "steps": entry["steps_per_block"],
        },
    )
    check_transcript(golden_engine(model), one, entry, entry["output_ids"])


@pytest.mark.parametrize("name", ["decode_llada_blocks", "decode_llada_one_block"])
def test_llada_low_confidence_remasking_gives_the_golden_transcript(name):
    entry = golden_cases("llada")[name].entry
    params = entry["params"]
    blocks = params["gen_length"] // params["block_length"]
    one = request(
        "x",
        entry["prompt_ids"],
        max_tokens=params["gen_length"],
        decoding={
            "rule": "quota",
            "sub_block_length": params["block_length"],
            "steps": params["steps"] // blocks,
        },
    )
    expected = entry["final_ids"][len(entry["prompt_ids"]) :]
    check_transcript(golden_engine(golden_model("llada")), one, entry, expected)


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        ("decode_threshold_nocache", "none"),
        ("decode_threshold_prefix_cache", "prefix"),
        ("decode_threshold_dual_cache", "dual"),
    ],
)
def test_llada_with_a_threshold_and_each_cache_gives_the_golden_transcript(name, cache):
    entry = golden_cases("llada")[name].entry
    params = entry["params"]
    one = request(
        "x",
        entry["prompt_ids"],
        max_tokens=params["gen_length"],
        decoding={
            "rule": "threshold",
            "confidence": params["threshold"],
            "sub_block_length": params["block_length"],
            "cache": cache,
        },
    )
    expected = entry["final_ids"][len(entry["prompt_ids"]) :]
    check_transcript(golden_engine(golden_model("llada")), one, entry, expected)


DREAM_RULES = {
    "maskgit_plus": {"rule": "time_quota", "preference": "confidence"},
    "topk_margin": {"rule": "time_quota", "preference": "margin"},
    "entropy": {"rule": "time_quota", "preference": "entropy"},
    "confidence_threshold": {"rule": "threshold_in_quota"},
}


@pytest.mark.parametrize(
    "name",
    ["decode_maskgit_plus", "decode_topk_margin", "decode_entropy", "decode_confidence_threshold"],
)
def test_dream_gives_the_golden_transcript(name):
    entry = golden_cases("dream")[name].entry
    one = request(
        "x",
        entry["prompt_ids"],
        max_tokens=entry["max_new_tokens"],
        decoding={
            **DREAM_RULES[entry["alg"]],
            "steps": entry["steps_requested"],
            **({"confidence": entry["threshold"]} if entry["threshold"] else {}),
        },
    )
    expected = entry["final_ids"][len(entry["prompt_ids"]) :]
    check_transcript(golden_engine(golden_model("dream")), one, entry, expected)


@pytest.mark.parametrize("name", ["decode_threshold", "decode_prompt_on_grid", "decode_stop"])
def test_fast_dllm_v2_gives_the_golden_transcript(name):
    case = golden_cases("fast_dllm_v2")[name]
    entry = case.entry
    prompt, final = entry["prompt_ids"], case.tensors["final_ids"][0].tolist()
    stop = entry.get("stop_token_id", entry.get("stop_token"))
    expected = final[len(prompt) :]
    if stop in expected:
        expected = expected[: expected.index(stop) + 1]
    one = request(
        "x",
        prompt,
        max_tokens=len(final) - len(prompt),
        stop_token_ids=() if stop is None else (stop,),
        decoding={
            "rule": "threshold",
            "confidence": entry["threshold"],
            "block_length": entry["block_size"],
            "sub_block_length": entry["small_block_size"],
        },
    )
    check_transcript(
        golden_engine(
            golden_model("fast_dllm_v2", RuleOverrides(mask_token_id=155, block_length=8))
        ),
        one,
        entry,
        expected,
    )


NLD = "nemotron_labs_diffusion"


@pytest.mark.parametrize(
    "name",
    [
        "decode_diffusion_threshold",
        "decode_diffusion_threshold_090",
        "decode_diffusion_schedule",
        "decode_diffusion_eos",
    ],
)
def test_nemotron_diffusion_gives_the_golden_transcript(name):
    case = golden_cases(NLD)[name]
    entry = case.entry
    prompt, final = entry["prompt_ids"], case.tensors["final_ids"][0].tolist()
    eos = entry["eos_token_id"]
    threshold = entry["threshold"]
    one = request(
        "x",
        prompt,
        max_tokens=entry["max_new_tokens"],
        stop_token_ids=() if eos is None else (eos,),
        decoding={
            "mode": "diffusion",
            "block_length": entry["block_length"],
            "rule": "quota" if threshold is None else "threshold",
            "steps": entry["steps_per_block"],
            **({} if threshold is None else {"confidence": threshold}),
        },
    )
    check_transcript(golden_engine(golden_model(NLD)), one, entry, final[len(prompt) :])


@pytest.mark.parametrize("name", ["decode_ar", "decode_ar_eos"])
@pytest.mark.parametrize("mode", ["ar", "speculative"])
def test_nemotron_verified_decoding_gives_the_autoregressive_tokens(name, mode):
    case = golden_cases(NLD)[name]
    entry = case.entry
    prompt, final = entry["prompt_ids"], case.tensors["final_ids"][0].tolist()
    one = request(
        "x",
        prompt,
        max_tokens=entry["max_new_tokens"],
        stop_token_ids=(entry["eos_token_id"],),
        decoding={"mode": mode, "block_length": 8},
    )
    tokens, _ = run_all(golden_engine(golden_model(NLD)), one)["x"]
    assert tokens == final[len(prompt) :]


def test_nemotron_speculation_accepts_what_the_original_loop_accepts():
    entry = golden_cases(NLD)["decode_spec_lora"].entry
    one = request(
        "x",
        entry["prompt_ids"],
        max_tokens=entry["max_new_tokens"],
        decoding={"mode": "speculative", "block_length": entry["block_length"]},
    )
    engine = golden_engine(golden_model(NLD))
    run_all(engine, one)
    assert engine.metrics.steps == entry["forwards_total"]
    assert engine.metrics.proposals_accepted == sum(entry["accepted"]) - len(entry["accepted"])


def test_nemotron_modes_share_a_batch_without_changing_each_other():
    cases = golden_cases(NLD)
    ar, diffusion = cases["decode_ar"], cases["decode_diffusion_threshold"]
    requests = [
        request("ar", ar.entry["prompt_ids"], max_tokens=40, decoding={"mode": "ar"}),
        request("spec", ar.entry["prompt_ids"], max_tokens=40, decoding={"mode": "speculative"}),
        request(
            "diffusion",
            diffusion.entry["prompt_ids"],
            max_tokens=32,
            decoding={"mode": "diffusion", "block_length": 8, "confidence": 0.7},
        ),
    ]
    answers = run_all(golden_engine(golden_model(NLD), max_rows=17), *requests)
    expected = ar.tensors["final_ids"][0].tolist()[len(ar.entry["prompt_ids"]) :]
    assert answers["ar"][0] == answers["spec"][0] == expected
    final = diffusion.tensors["final_ids"][0].tolist()
    assert answers["diffusion"][0] == final[len(diffusion.entry["prompt_ids"]) :]


@pytest.mark.parametrize("name", ["decode_first_hitting_kv", "decode_first_hitting_nokv"])
def test_bd3lm_gives_the_golden_tokens_with_the_recorded_positions(name, monkeypatch):
    case = golden_cases("bd3lm")[name]
    entry = case.entry
    final = case.tensors["final_ids"][0].tolist()
    chosen = iter([step["position"] for step in entry["steps"] if "position" in step])

    def recorded(scores, _knobs):
        position = next(chosen)
        return scores.is_open & (scores.positions == position)

    monkeypatch.setattr("sampler.outcome.canvas_acceptance.accept", recorded)
    engine = golden_engine(golden_model("bd3lm"))
    one = request(
        "x",
        [entry["bos_token_id"]],
        max_tokens=len(final) - 1,
        decoding={"block_length": entry["block_size"]},
    )
    tokens, _ = run_all(engine, one)["x"]
    assert tokens == final[1:]
    assert engine.metrics.steps == len(final) - 1


def rank_schedule(order, counts):
    return RankSchedule(positions=np.array(order), counts=np.array(counts))


@pytest.mark.parametrize(
    "name", ["decode_hybrid", "decode_diffusion_only", "decode_ar_only", "decode_subcontext"]
)
def test_esolm_gives_the_golden_tokens_in_the_golden_order(name):
    case = golden_cases("esolm")[name]
    counts = case.entry["counts"]
    model = golden_model("esolm")
    for line, order in enumerate(case.tensors["order"].tolist()):
        # The originals have no prompt; ours needs one token, so the tokens of the first steps
        # are compared by running the original order on an engine that starts with nothing known.
        engine = golden_engine(model, context=40)
        steps = run_unconditional(engine, rank_schedule(order, counts), len(order))
        assert steps == case.tensors["final_ids"][line].tolist()
        assert engine.metrics.steps == len(counts)


def run_unconditional(engine, schedule, length):
    """Decode without a prompt: seat a request, then take its prompt token away again."""
    one = request("x", [0], max_tokens=length, decoding={"mode": "diffusion"})
    engine.submit(one)
    engine.scheduler._admit(0.0)
    table = engine.table
    table.prompt_length[0] = table.final[0] = table.canvas_stop[0] = 0
    table.prompt_stop[0] = table.emitted[0] = 0
    table.is_open[0] = False
    table.limit[0] = table.room[0] = length
    engine.rule.begin_canvas(table, 0, schedule)
    return run_to_end(engine)


def run_to_end(engine):
    tokens = []
    while engine.has_work:
        for delta in engine.step().deltas:
            tokens.extend(delta.token_ids)
    return tokens


def test_llada21_edits_are_counted_and_bounded():
    model = golden_model("llada2", RuleOverrides(mask_token_id=155, block_length=8))
    rule = model.family.rule
    edited = replace(
        rule,
        acceptance=replace(
            rule.acceptance, rule="threshold", confidence=0.2, edit_confidence=0.3, max_edit_steps=4
        ),
    )
    model = replace(model, family=replace(model.family, rule=edited))
    prompt = golden_cases("llada2")["decode_threshold"].entry["prompt_ids"]
    engine = golden_engine(model)
    tokens, deltas = run_all(engine, request("x", prompt, max_tokens=22))["x"]
    assert len(tokens) == 22
    assert deltas[-1].stats.revised_tokens == engine.metrics.tokens_revised > 0
