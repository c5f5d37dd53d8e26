"""`estuary`: finds the command that was called, and imports no other.

What a command needs, such as the engine, takes seconds to import: `COMMANDS` says in plain words
what there is, and `--version`, `--help` and misspelt commands are answered from it alone.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

from server.version import package_version


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its module in `server.shell`, and what it does in a sentence."""

    module: str
    summary: str


COMMANDS = {
    "serve": Command("serve_command", "Serve a model over HTTP."),
    "fetch": Command("fetch_command", "Bring a model into the cache folder."),
    "complete": Command("complete_command", "Answer one prompt."),
    "bench": Command("bench_command", "Measure a model's engine under load."),
    "score": Command("score_command", "Say how likely a text is, in nats."),
    "check": Command(
        "check_command", "Say what a checkpoint is, whether it can be served, and what it needs."
    ),
    "convert": Command(
        "convert_command",
        "Turn a Lightning checkpoint (Eso-LM) into a model folder; its averaged weights count.",
    ),
    "train": Command("train_command", "Train a small model with one of the project's recipes."),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the process's exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    called = next((word for word in given if not word.startswith("-")), "")
    parsed = build_parser(called).parse_args(given)
    code: int = import_module("server.shell.run_command").run(parsed)
    return code


def build_parser(called: str | None = None) -> argparse.ArgumentParser:
    """A parser that knows every command by name, and the flags of the one that is called.

    called: the command, whose module is imported; None imports all of them
    """
    parser = SuggestingParser(
        prog="estuary",
        description="Serve language models that decode autoregressively, by diffusion, or both.",
        epilog="A setting comes from its flag, else from the environment, else from the file "
        "of --config.",
    )
    parser.add_argument("--version", action="version", version=f"estuary {package_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.summary, description=command.summary)
        if called in (None, name):
            module = import_module(f"server.shell.{command.module}")
            module.add_flags(own)
            own.set_defaults(command=module.run)
            parser.flags.update(own._option_string_actions)
    return parser


class SuggestingParser(argparse.ArgumentParser):
    """Names what was probably meant behind what it does not know; subcommands are of this kind too.

    flags: of the command that is called, which are suggested
    """

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.flags: dict[str, argparse.Action] = {}

    def error(self, message: str) -> NoReturn:
        """Print usage, the message and a suggestion, and exit with 2."""
        super().error(message + self._suggestion(message))

    def _suggestion(self, message: str) -> str:
        unknown = re.search(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown:
            known = list(self.flags)
        else:
            unknown = re.search(r"invalid choice: '([^']*)'", message)
            choices = re.search(r"\(choose from (.*)\)", message)
            known = re.findall(r"[\w-]+", choices[1]) if choices else []
        near = difflib.get_close_matches(unknown[1], known, n=1) if unknown else []
        return f"; did you mean {near[0]}?" if near else ""
