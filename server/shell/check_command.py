"""`estuary check`: what a checkpoint is, whether it can be served, and what it needs."""

import argparse
from pathlib import Path

from server.serve import EXIT_FAILED, EXIT_OK
from server.settings import Settings
from weights.check import check_model, report


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the path of the checkpoint."""
    parser.add_argument("path", type=Path, metavar="PATH", help="model folder or GGUF file")
    parser.set_defaults(print_config=False, config=None)


def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Print what was found; fails where the checkpoint cannot be served."""
    del settings
    found = check_model(arguments.path)
    print("\n".join(report(found)))
    return EXIT_OK if found.problem is None else EXIT_FAILED
