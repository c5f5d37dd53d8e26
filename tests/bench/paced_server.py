"""The API process as it is, in front of an engine whose network does nothing.

Run by bench_api_overhead: python -m tests.bench.paced_server TIMES_FILE --port N
"""

import sys

from sampler import EngineClient, EngineConfig
from server.app import create_app
from server.serve import listen, run
from server.settings import load_settings
from server.shell.cli import build_parser
from server.shell.flags import given
from server.watch.logging_setup import set_up_logging
from tests.server.scripted_engine import byte_tokenizer, template


def main() -> int:
    times_file, *flags = sys.argv[1:]
    settings = load_settings(given(build_parser().parse_args(["serve", *flags])))
    set_up_logging(form="json", level=settings.log_level)
    config = EngineConfig(
        model=times_file,
        max_sequences=settings.max_num_seqs,
        max_waiting=settings.max_queued_requests,
    )
    engine = EngineClient(config, module="tests.bench.paced_engine")
    app = create_app(engine, byte_tokenizer(), template(), settings)
    return run(
        app,
        engine,
        settings,
        bound=listen(settings),
        on_ready=lambda address: print(address, flush=True),
    )


if __name__ == "__main__":
    raise SystemExit(main())
