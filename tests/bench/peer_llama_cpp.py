"""llama.cpp's own C++ server, with continuous batching, on the same GGUF; run by its interpreter.

Run: PYTHON tests/bench/peer_llama_cpp.py MODEL.gguf --port N [--threads 2]

PYTHON has `xllamacpp`. Ends with the process that started it or when told to.
"""

import argparse
import signal

import xllamacpp

SLOTS, SLOT_TOKENS = 16, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * SLOT_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
    params.port = arguments.port
    server = xllamacpp.Server(params)
    print(f"{server.listening_address} xllamacpp {xllamacpp.__version__}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
