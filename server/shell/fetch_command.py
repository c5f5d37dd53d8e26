"""`estuary fetch`: a model into the cache folder."""

import argparse

from server.serve import EXIT_OK
from server.settings import MODEL, Settings
from server.shell.flags import add_model, add_settings
from server.shell.model_source import find_model


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which model."""
    add_model(parser)
    add_settings(parser, groups=(MODEL,))


def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Fetch the model and print where it lies."""
    del arguments
    print(find_model(settings))
    return EXIT_OK
