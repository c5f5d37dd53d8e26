"""`estuary convert`: a Lightning checkpoint to a model folder."""

import argparse
from pathlib import Path

from server.serve import EXIT_OK
from server.settings import Settings
from weights.files.convert import convert_lightning


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint, the folder, and what the checkpoint does not say."""
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="the .ckpt file")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made, must not exist")
    parser.add_argument(
        "--family",
        choices=("esolm", "mdlm", "bd3lm"),
        help="what it is, where the checkpoint's own configuration cannot be read",
    )
    parser.add_argument("--model-length", type=int, metavar="N", help="context in tokens, likewise")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="copy the tokenizer files of this folder"
    )
    parser.set_defaults(print_config=False, config=None)


def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Write the folder and print its path."""
    del settings
    convert_lightning(
        arguments.checkpoint,
        arguments.folder,
        family=arguments.family,
        model_length=arguments.model_length,
        tokenizer_folder=arguments.tokenizer,
    )
    print(arguments.folder)
    return EXIT_OK
