"""Runs a command that was parsed: its settings, and what goes wrong as a sentence and a status."""

import argparse
import sys

from sampler import EngineStopped
from server.serve import EXIT_FAILED, EXIT_OK
from server.settings import SettingsError, load_settings, printable
from server.shell.flags import given
from weights.errors import CheckpointError, FetchError, TemplateError

EXIT_USAGE = 2


def run(parsed: argparse.Namespace) -> int:
    """Run the command and return the process's exit code."""
    try:
        settings = load_settings(given(parsed), config=parsed.config)
        if parsed.print_config:
            print(printable(settings), end="")
            return EXIT_OK
        code: int = parsed.command(settings, parsed)
    except SettingsError as error:
        print(f"estuary: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (CheckpointError, FetchError, TemplateError, EngineStopped, ValueError) as error:
        print(f"estuary: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_FAILED
    return code
