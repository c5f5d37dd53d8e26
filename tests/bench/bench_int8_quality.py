"""What int8 weights cost in quality: perplexity and distance to float32 on plain prose.

The prose is the language reference that ships inside Python (`pydoc_data.topics`), so that the
figures can be had anywhere. Run: python -m tests.bench.bench_int8_quality <model path>
"""

import argparse
import math
from pathlib import Path
from pydoc_data import topics

import torch
from torch import Tensor

from kernels import KVCache, PagedBatch, allocate_kv_cache, linear
from tests.bench.harness import print_table, write_json
from weights import LoadedModel, Network, NetworkInput, Quantize, load_model

PAGE_SIZE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a checkpoint folder or GGUF file")
    parser.add_argument("--windows", type=int, default=32, help="texts, each run on its own")
    parser.add_argument("--window-tokens", type=int, default=256, help="tokens of a text")
    arguments = parser.parse_args()
    reference = load(arguments.model, None, arguments.window_tokens)
    int8 = load(arguments.model, Quantize.INT8, arguments.window_tokens)
    windows = prose_windows(reference, arguments.windows, arguments.window_tokens)
    check_reference(reference.network, windows[0])
    rows = measure(reference.network, int8.network, windows)
    print_table(rows)
    write_json("int8_quality", {"model": reference.name, "tokens": windows.numel(), "rows": rows})


def load(path: Path, quantize: Quantize | None, context_length: int) -> LoadedModel:
    return load_model(
        path,
        dtype=torch.float32,
        device=torch.device("cpu"),
        quantize=quantize,
        context_length=context_length,
    )


def prose_windows(model: LoadedModel, count: int, length: int) -> Tensor:
    """The first `count * length` tokens of the prose, in texts [count, length]."""
    prose = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    # A token stands for at least one character on average, by far.
    ids = model.tokenizer.encode(prose[: 8 * count * length], add_special_tokens=False)
    return torch.tensor(ids[: count * length]).view(count, length)


def measure(reference: Network, int8: Network, windows: Tensor) -> list[dict[str, object]]:
    totals = torch.zeros(4, dtype=torch.float64)
    for ids in windows:
        wanted = log_probabilities(reference, ids)
        got = log_probabilities(int8, ids)
        following = ids[1:, None]
        totals += torch.stack(
            [
                -wanted[:-1].gather(1, following).double().sum(),
                -got[:-1].gather(1, following).double().sum(),
                (wanted.exp() * (wanted - got)).double().sum(),
                (wanted.argmax(-1) == got.argmax(-1)).double().sum(),
            ]
        )
    predicted = windows.numel() - len(windows)
    return [
        {
            "weights": name,
            "perplexity": math.exp(float(loss) / predicted),
            "mean_kl_nats": float(divergence) / windows.numel(),
            "same_argmax": float(agreement) / windows.numel(),
        }
        for name, loss, divergence, agreement in (
            ("float32", totals[0], 0.0, windows.numel()),
            ("int8", totals[1], totals[2], totals[3]),
        )
    ]


@torch.inference_mode()
def log_probabilities(network: Network, ids: Tensor) -> Tensor:
    """Log-probabilities [L, V] of every next token of one text."""
    length = len(ids)
    entries = torch.arange(length)
    batch = PagedBatch(
        span_starts=torch.tensor([0, length], dtype=torch.int32),
        page_table=torch.arange(-(-length // PAGE_SIZE), dtype=torch.int32)[None],
        slots=entries,
        limits=(entries + 1).int(),
        max_span=length,
        max_limit=length,
    )
    step = NetworkInput(token_ids=ids, positions=entries, score_rows=entries, batch=batch)
    hidden = network.forward(step, new_cache(network, length))
    return linear(hidden, network.head_weight, network.head_bias).log_softmax(-1)


def new_cache(network: Network, length: int) -> KVCache:
    return allocate_kv_cache(
        num_layers=network.num_layers,
        num_pages=-(-length // PAGE_SIZE),
        page_size=PAGE_SIZE,
        num_kv_heads=network.num_kv_heads,
        head_dim=network.head_dim,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def check_reference(network: Network, ids: Tensor) -> None:
    """Refuse to measure against a reference that sees the future."""
    whole = log_probabilities(network, ids)
    half = log_probabilities(network, ids[: len(ids) // 2])
    torch.testing.assert_close(whole[: len(half)], half, atol=1e-3, rtol=0)


if __name__ == "__main__":
    main()
