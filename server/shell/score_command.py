"""`estuary score`: how likely a text is."""

import argparse
import sys
from pathlib import Path

from sampler.scorer import Scorer
from server.serve import EXIT_OK
from server.settings import MODEL, Settings
from server.shell.flags import add_model, add_settings
from server.shell.model_source import find_model
from server.watch.logging_setup import set_up_logging


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the text and how its orders are drawn."""
    add_model(parser)
    add_settings(parser, groups=(MODEL,))
    parser.add_argument(
        "--text-file", type=Path, metavar="FILE", help="the text; standard input when left out"
    )
    parser.add_argument(
        "--orders",
        type=int,
        default=1,
        metavar="K",
        help="orders of the importance-weighted bound of any-order models; default 1",
    )
    parser.add_argument(
        "--alpha-0",
        type=float,
        metavar="X",
        help="share of an order that is random, 0 to 1; default the checkpoint's own",
    )
    parser.add_argument("--order-seed", type=int, default=0, metavar="N", help="default 0")


def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Score the text and print nats and perplexity."""
    set_up_logging(form="console", level="warning")
    scorer = Scorer.load(find_model(settings))
    source = arguments.text_file
    text = sys.stdin.read() if source is None else source.read_text(encoding="utf-8")
    found = scorer.score(
        text, num_orders=arguments.orders, alpha_0=arguments.alpha_0, seed=arguments.order_seed
    )
    print(
        f"{found.num_scored} tokens, {found.logprob:.4f} nats in all, "
        f"perplexity {found.perplexity:.4f}"
    )
    return EXIT_OK
