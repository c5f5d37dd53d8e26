"""llama.cpp on the same GGUF: one stream, and its batch API; run by the peer's own interpreter.

Run: PEER_PYTHON tests/bench/peer_llama_cpp.py MODEL.gguf [--threads 2]; prints one JSON line.
"""

import argparse
import ctypes
import json
import time

import llama_cpp
import numpy as np

PROMPT_TOKENS = 64
NEW_TOKENS = 128


def one_stream(path: str, threads: int) -> float:
    """Tokens per second of greedy decoding, one sequence."""
    model = llama_cpp.Llama(
        path, n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    model.eval(list(range(100, 100 + PROMPT_TOKENS)))
    token = model.sample(temp=0.0)
    started_s = time.perf_counter()
    for _ in range(NEW_TOKENS):
        model.eval([token])
        token = model.sample(temp=0.0)
    return NEW_TOKENS / (time.perf_counter() - started_s)


def batched(path: str, threads: int, num_sequences: int) -> float:
    """Tokens per second over all sequences, decoded together through `llama_decode`."""
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        path.encode(), llama_cpp.llama_model_default_params()
    )
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = num_sequences * 256
    params.n_batch = num_sequences * PROMPT_TOKENS
    params.n_seq_max = num_sequences
    params.n_threads = params.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, params)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(num_sequences * PROMPT_TOKENS, 0, 1)

    def decode(rows: list[tuple[int, int, int, bool]]) -> None:
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wants) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wants
        if llama_cpp.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def best(row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(context, row)
        values = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * vocabulary)).contents
        return int(np.frombuffer(values, dtype=np.float32).argmax())

    rows = [
        (100 + p + s, p, s, p == PROMPT_TOKENS - 1)
        for s in range(num_sequences)
        for p in range(PROMPT_TOKENS)
    ]
    decode(rows)
    tokens = [best(s * PROMPT_TOKENS + PROMPT_TOKENS - 1) for s in range(num_sequences)]
    started_s = time.perf_counter()
    for step in range(NEW_TOKENS):
        decode([(tokens[s], PROMPT_TOKENS + step, s, True) for s in range(num_sequences)])
        tokens = [best(s) for s in range(num_sequences)]
    return num_sequences * NEW_TOKENS / (time.perf_counter() - started_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=16)
    arguments = parser.parse_args()
    result = {
        "version": llama_cpp.__version__,
        "one_stream_tokens_per_s": one_stream(arguments.model, arguments.threads),
        "batch_sequences": arguments.sequences,
        "batch_tokens_per_s": batched(arguments.model, arguments.threads, arguments.sequences),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
