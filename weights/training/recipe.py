"""`Recipe`: one thing that `estuary train` can make."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Recipe:
    """A command that trains a checkpoint.

    name:      what follows `estuary train`
    summary:   one sentence of help
    add_flags: give the command its flags
    run:       train; returns the folder that was made. Raises ValueError or CheckpointError for
               input that cannot be used
    """

    name: str
    summary: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Path]
