"""What the API process costs: CPU time and latency per streamed token, memory over many requests.

The engine's network does nothing and takes its time (`paced_engine`): every stream gets ten tokens
a second. CPU time is that of the API process alone, over whole streams in steady state. Latency is
from the moment the engine sends a token until the client's socket has its event.

Run: python -m tests.bench.bench_api_overhead [--streams 500] [--seconds 20] [--requests 100000]
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from tests.bench.harness import percentiles, print_table, write_json
from tests.bench.paced_engine import TOKENS_PER_S
from tests.bench.paced_streams import Stream, latencies_ms
from tests.bench.served import STOP_TIMEOUT_S, resident_mb, wait_until_ready

WARM_UP_S = 5.0
# Of the measured tokens, so many must have come: the pace was kept.
KEPT_SHARE = 0.95


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def run_streams(port: int, pid: int, *, count: int, seconds: float) -> dict[str, object]:
    """Open the streams, wait until all run, measure, and let them end."""
    max_tokens = int((WARM_UP_S + seconds + 5) * TOKENS_PER_S)
    loop = asyncio.get_running_loop()
    streams = []
    for _ in range(count):
        _, stream = await loop.create_connection(lambda: Stream(max_tokens), "127.0.0.1", port)
        streams.append(stream)
    await asyncio.sleep(WARM_UP_S)
    began_s, began_cpu_s = time.monotonic(), cpu_s(pid)
    await asyncio.sleep(seconds)
    ended_s, ended_cpu_s = time.monotonic(), cpu_s(pid)
    await asyncio.gather(*(stream.is_over for stream in streams))
    inside = sum(began_s <= came <= ended_s for stream in streams for came in stream.came_s)
    return {
        "streams": streams,
        "window_s": (began_s, ended_s),
        "num_tokens": inside,
        "cpu_us_per_token": (ended_cpu_s - began_cpu_s) / inside * 1e6,
        "cpu_share": (ended_cpu_s - began_cpu_s) / (ended_s - began_s),
    }


async def run_requests(
    url: str, pid: int, *, count: int, at_a_time: int
) -> list[dict[str, object]]:
    """Memory of the API process while it answers many short requests."""
    body = {"prompt": "The tide", "max_tokens": 1}
    rows: list[dict[str, object]] = []
    step = max(count // 10, at_a_time)
    async with httpx.AsyncClient(base_url=url, timeout=60.0) as client:

        async def ask(number: int) -> None:
            for _ in range(number):
                assert (await client.post("/v1/completions", json=body)).status_code == 200

        for done in range(0, count + 1, step):
            rows.append({"requests": done, "resident_mb": resident_mb(pid)})
            await asyncio.gather(*(ask(step // at_a_time) for _ in range(at_a_time)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder) / "times.json"
        command = [sys.executable, "-m", "tests.bench.paced_server", str(times), "--port", "0",
                   "--max-num-seqs", str(arguments.streams), "--drain-grace", "0",
                   "--log-level", "warning"]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            url = process.stdout.readline().strip()
            wait_until_ready(process, f"{url}/ready")
            port = int(url.rpartition(":")[2])
            measured = asyncio.run(
                run_streams(port, process.pid, count=arguments.streams, seconds=arguments.seconds)
            )
            memory = asyncio.run(
                run_requests(url, process.pid, count=arguments.requests, at_a_time=32)
            )
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)
        sent_s = json.loads(times.read_text())
    streams, window_s = measured.pop("streams"), measured.pop("window_s")
    wanted = arguments.streams * arguments.seconds * TOKENS_PER_S
    assert measured["num_tokens"] > KEPT_SHARE * wanted, "the server did not keep the pace"
    latency = percentiles(latencies_ms(streams, sent_s, window_s), 50, 95, 99)
    tokens = {
        "num_streams": arguments.streams,
        "tokens_per_s_each": TOKENS_PER_S,
        **measured,
        **{f"latency_ms_{name}": value for name, value in latency.items()},
    }
    print_table([tokens])
    print_table(memory)
    if not arguments.no_write:
        write_json("api_overhead", {"tokens": tokens, "memory": memory})


if __name__ == "__main__":
    main()
