"""`python -m server`, and the `estuary` command."""

import contextlib
import os
import sys

from server.shell.cli import main


def run() -> None:
    """Run a command and end the process, without the interpreter's own end, which takes seconds."""
    try:
        code = main()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
