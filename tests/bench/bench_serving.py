"""Serving the default model on a CPU: offline and over HTTP, beside llama.cpp where it is given.

Run: python -m tests.bench.bench_serving [--peer PYTHON] [--pairs 3] [--threads 2] [--quick]

PYTHON is an interpreter that has llama-cpp-python with its server. It gets the same GGUF file and
the same number of threads, and its runs alternate with ours: both see the same machine.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sampler import EngineClient
from server.settings import load_settings
from server.shell.bench import BenchLoad, bench
from server.shell.model_source import engine_config, find_model
from tests.bench.harness import print_table, write_json
from tests.bench.load import Workload, decode_tokens_per_s, measure, summary
from tests.bench.served import Served, serving_llama_cpp, serving_ours

Row = dict[str, object]

SEQUENCES = 16
MANY_NAME = f"{SEQUENCES} at once"
PROMPT_TOKENS, NEW_TOKENS = 64, 128
ONE = Workload(num_requests=3, concurrency=1, prompt_words=(50, 50), max_tokens=(128, 128))
MANY = Workload(num_requests=32, concurrency=SEQUENCES, prompt_words=(20, 80), max_tokens=(32, 96))
ARRIVALS = Workload(
    num_requests=48, concurrency=64, prompt_words=(20, 80), max_tokens=(32, 96), arrivals_per_s=1.0
)
# Every answer has the length asked for: ours is told so, llama.cpp may not draw the end of text.
OURS = {"ignore_eos": True}
PEERS = {"logit_bias": {"0": -100, "2": -100}}
PEER_SCRIPT = Path(__file__).with_name("peer_llama_cpp.py")


def quick(workload: Workload) -> Workload:
    """A small part of a workload, to try the benchmark itself."""
    return replace(workload, num_requests=min(workload.num_requests, 8), max_tokens=(16, 24))


def offline(model: Path, *, threads: int, sequences: int, seed: int) -> float:
    """Tokens per second of decoding in the engine process, without HTTP and without prompts."""
    settings = load_settings({"num_threads": threads})
    load = BenchLoad(
        num_requests=sequences,
        concurrency=sequences,
        prompt_tokens=PROMPT_TOKENS,
        answer_tokens=NEW_TOKENS,
        mode="auto",
        seed=seed,
    )
    engine = EngineClient(engine_config(settings, model), log_level="WARNING")
    return sum(1 / seconds for seconds in asyncio.run(bench(engine, load)).per_token_s)


def peer_offline(python: str, model: Path, *, threads: int) -> dict[str, float]:
    """The same of llama.cpp through its own interface: one stream, and its batch interface."""
    command = [python, str(PEER_SCRIPT), str(model), "--threads", str(threads)]
    command += ["--sequences", str(SEQUENCES)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def over_http(served: Served, workload: Workload, extra: dict[str, object]) -> Row:
    """Throughput and latency of a workload whose answers all have the length asked for."""
    timings, seconds = asyncio.run(measure(served.url, workload, model=served.model, extra=extra))
    shortest = min(t.num_tokens for t in timings)
    assert shortest >= workload.max_tokens[0], f"an answer ended after {shortest} tokens"
    return {**summary(timings, seconds), "decode_tokens_per_s": decode_tokens_per_s(timings)}


def measure_offline(arguments: argparse.Namespace, model: Path, pair: int) -> list[Row]:
    """One stream and many, ours and then the peer's."""
    threads = arguments.threads
    speeds = {
        ("one stream", "estuary"): offline(model, threads=threads, sequences=1, seed=pair),
        (MANY_NAME, "estuary"): offline(model, threads=threads, sequences=SEQUENCES, seed=pair),
    }
    if arguments.peer:
        peer = peer_offline(arguments.peer, model, threads=threads)
        speeds["one stream", "llama.cpp"] = peer["one_stream_tokens_per_s"]
        speeds[MANY_NAME, "llama.cpp"] = peer["batch_tokens_per_s"]
    return [
        {"run": name, "pair": pair, "server": server, "decode_tokens_per_s": speed}
        for (name, server), speed in speeds.items()
    ]


def measure_served(ours: Served, peer: Served | None, arguments: argparse.Namespace) -> list[Row]:
    """The workloads over HTTP, in pairs, after one that is thrown away."""
    servers = [("estuary", ours, OURS)] + ([("llama.cpp", peer, PEERS)] if peer else [])
    for _, served, extra in servers:
        over_http(served, quick(MANY), extra)
    return [
        {"run": name, "pair": pair, "server": server, **over_http(served, asked, extra)}
        for pair in range(arguments.pairs)
        for name, workload in (("one stream", ONE), (MANY_NAME, MANY))
        for asked in [replace(quick(workload) if arguments.quick else workload, seed=pair + 1)]
        for server, served, extra in servers
    ]


def ratios(where: str, rows: list[Row]) -> list[Row]:
    """Ours over the peer's, for each run: the median of the pairs, and all of them.

    One stream is compared by decoding alone, many over HTTP by all tokens in all the time.
    """
    result = []
    for name in dict.fromkeys(row["run"] for row in rows):
        is_total = where == "http" and name == MANY_NAME
        key = "tokens_per_s" if is_total else "decode_tokens_per_s"
        speeds = {(row["server"], row["pair"]): row[key] for row in rows if row["run"] == name}
        pairs = sorted(pair for server, pair in speeds if server == "llama.cpp")
        each = [speeds["estuary", pair] / speeds["llama.cpp", pair] for pair in pairs]
        if each:
            ratio = statistics.median(each)
            result.append({"run": f"{where}, {name}", "of": key, "ratio": ratio, "pairs": each})
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter with llama-cpp-python")
    parser.add_argument("--pairs", type=int, default=3, help="repetitions, alternating; default 3")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each; default 2")
    parser.add_argument("--quick", action="store_true", help="small, and writes no result")
    arguments = parser.parse_args()
    model = find_model(load_settings({}))
    pairs = range(arguments.pairs)
    in_process = [row for pair in pairs for row in measure_offline(arguments, model, pair)]
    started_s = time.monotonic()
    with serving_ours("--num-threads", str(arguments.threads)) as ours, ExitStack() as stack:
        content: dict[str, object] = {"start_to_ready_s": time.monotonic() - started_s}
        memory = {"ours_idle_api_and_engine": ours.resident_mb()}
        peer = None
        if arguments.peer:
            peer = stack.enter_context(
                serving_llama_cpp(arguments.peer, model, threads=arguments.threads)
            )
        http = measure_served(ours, peer, arguments)
        arrivals = over_http(ours, quick(ARRIVALS) if arguments.quick else ARRIVALS, OURS)
        memory["ours_loaded_api_and_engine"] = ours.resident_mb()
        if peer:
            memory["llama_cpp_loaded"] = peer.resident_mb()
    content |= {
        "arrivals_per_s": ARRIVALS.arrivals_per_s,
        "offline": in_process,
        "http": http,
        "arrivals": arrivals,
        "resident_mb": memory,
        "ours_over_llama_cpp": ratios("offline", in_process) + ratios("http", http),
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
