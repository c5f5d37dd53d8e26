"""`estuary complete`: one prompt answered in the shell."""

import argparse
import asyncio
import sys

from sampler import EngineClient
from server.serve import EXIT_OK
from server.settings import ENGINE, MODEL, Settings
from server.shell.flags import add_model, add_settings
from server.shell.model_source import engine_config, find_model, read_model_text
from server.shell.one_answer import CompleteOptions, complete
from server.watch.logging_setup import set_up_logging


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the prompt and how to answer it."""
    add_model(parser, is_positional=False)
    add_settings(parser, groups=(MODEL, ENGINE))
    parser.add_argument("prompt", help="the prompt; - reads it from standard input")
    parser.add_argument(
        "--raw", action="store_true", help="continue the text as it is, without a chat template"
    )
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="default 256")
    parser.add_argument(
        "--temperature", type=float, default=None, metavar="X", help="default the model's own"
    )
    parser.add_argument("--top-p", type=float, default=None, metavar="P", help="likewise")
    parser.add_argument(
        "--mode",
        choices=("auto", "ar", "diffusion", "speculative"),
        default="auto",
        help="how to decode; default auto",
    )
    parser.add_argument(
        "--sampling-seed", type=int, default=None, metavar="N", help="makes the answer repeatable"
    )
    parser.add_argument("--stats", action="store_true", help="print what it took to stderr")


def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Write the answer as it comes."""
    set_up_logging(form="console", level="warning")
    path = find_model(settings)
    text = read_model_text(path, settings)
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    options = CompleteOptions(
        prompt=prompt,
        is_raw=arguments.raw,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        mode=arguments.mode,
        seed=arguments.sampling_seed,
    )
    engine = EngineClient(engine_config(settings, path), log_level="WARNING")

    def write(piece: str) -> None:
        print(piece, end="", flush=True)

    usage = asyncio.run(complete(engine, text, settings, options, write=write))
    print()
    if arguments.stats:
        print(usage.model_dump_json(), file=sys.stderr)
    return EXIT_OK
