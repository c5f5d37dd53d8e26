"""The first lines of the engine process: it cannot outlive its parent, then it becomes the engine.

Run as a file, with the standard library alone: importing the engine takes seconds, in which the
parent may die or be told to stop. `EngineClient` starts it as `python engine_boot.py PARENT MODULE
ARGUMENTS`.
"""

import ctypes
import os
import runpy
import signal
import sys
from pathlib import Path

# Of prctl(2): the signal that the kernel sends when the thread that started this process ends.
_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however that comes about.

    parent: process id of whoever started this process; a parent that has gone already counts
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl: {os.strerror(code)}")
    if os.getppid() != parent:
        os._exit(1)


def ignore_stop_signals() -> None:
    """Leave stopping to the API process.

    Ctrl-C in a terminal and a service manager's SIGTERM reach both processes; the API process
    drains its requests and decides when this one ends: by a message, by closing the channel, or
    by a signal that nobody can ignore.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def main() -> None:
    """Become the module that the arguments name."""
    die_with(int(sys.argv[1]))
    ignore_stop_signals()
    module = sys.argv[2]
    del sys.argv[1:3]
    sys.path[0] = str(_import_root(Path(__file__).resolve()))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _import_root(file: Path) -> Path:
    """The folder that the packages around a file are imported from."""
    return next(folder for folder in file.parents if not (folder / "__init__.py").is_file())


if __name__ == "__main__":
    main()
