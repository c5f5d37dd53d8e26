"""Steps replayed as CUDA graphs beside the same steps launch by launch, with the whole engine.

Each number of sequences decodes the same texts twice with the 170 M transformer and random
weights. The first tokens must be the same; later ones may differ where two tokens are within
rounding, as tiles differ. Times are of whole engine steps that draw one token for each sequence,
host work included.

Run: python -m tests.bench.bench_cuda_graphs [--sequences 1 16 128] [--tokens 256]
"""

import argparse
import time

import torch

from tests.bench.harness import percentiles, print_table, write_json
from tests.bench.harness_gpu import require_gpu
from tests.bench.random_network import diffusion_transformer, engine_over
from tests.tiny import request
from weights import FamilyRule

PROMPT_TOKENS = 32
# Answers are compared up to here, and so many of them must agree.
COMPARED_TOKENS = 16
SAME_SHARE = 0.95


def decode(engine, *, num_sequences, num_tokens):
    """(tokens by sequence, milliseconds of every step in which all sequences draw one)."""
    for number in range(num_sequences):
        prompt = [(7 * i + number) % 50_000 + 1 for i in range(PROMPT_TOKENS)]
        engine.submit(request(str(number), prompt, max_tokens=num_tokens, seed=number))
    answers, times_ms = {}, []
    while engine.has_work:
        started_s = time.perf_counter()
        output = engine.step()
        elapsed_ms = (time.perf_counter() - started_s) * 1e3
        pairs = list(zip(output.tokens.request_ids, output.tokens.token_ids, strict=True))
        for name, token in pairs:
            answers.setdefault(name, []).append(token)
        for delta in output.deltas:
            answers.setdefault(delta.request_id, []).extend(delta.token_ids)
        if len(pairs) == num_sequences:
            times_ms.append(elapsed_ms)
    return answers, times_ms


def measure(network, num_sequences, num_tokens):
    """One row of the table; stops when the replayed answers are others."""
    context = PROMPT_TOKENS + num_tokens + 16
    sizes = {"num_sequences": num_sequences, "num_tokens": num_tokens}
    row, answers = {"sequences": num_sequences}, []
    for name, cuda_graphs in (("eager", False), ("replayed", True)):
        engine = engine_over(
            network,
            FamilyRule(),
            context=context,
            num_sequences=num_sequences,
            cuda_graphs=cuda_graphs,
        )
        decode(engine, **sizes)
        engine.reset()
        tokens, times_ms = decode(engine, **sizes)
        answers.append(tokens)
        row |= {f"{name} {p} ms": value for p, value in percentiles(times_ms, 50, 90).items()}
    same = [
        tokens[:COMPARED_TOKENS] == answers[1][name][:COMPARED_TOKENS]
        for name, tokens in answers[0].items()
    ]
    if sum(same) < SAME_SHARE * num_sequences:
        raise SystemExit(f"{num_sequences} sequences: replaying gives other tokens")
    return row | {"eager / replayed": row["eager p50 ms"] / row["replayed p50 ms"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--tokens", type=int, default=256)
    arguments = parser.parse_args()
    require_gpu()
    torch.manual_seed(0)
    network = diffusion_transformer(
        max_positions=PROMPT_TOKENS + arguments.tokens + 64, device="cuda"
    )
    rows = [measure(network, count, arguments.tokens) for count in arguments.sequences]
    print_table(rows)
    print(write_json("bench_cuda_graphs", {"unit": "ms", "rows": rows}))


if __name__ == "__main__":
    main()
