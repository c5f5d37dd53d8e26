"""Prompts for distillation, of three kinds, as token ids: chat, arithmetic and code.

Chat and arithmetic come from JSON lines that name a `prompt` or a `question`; code from the
docstrings of Python's own standard library.
"""

import ast
import hashlib
import json
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from weights.config_fields import Json
from weights.errors import CheckpointError
from weights.text.chat_template import ChatTemplate
from weights.text.tokenizer import Tokenizer

# One prompt in so many is held out, chosen by its text.
HELD_OUT_ONE_IN = 20
_LONGEST_PROMPT = 160


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the model gets it.

    kind:        chat, arithmetic, code or prose
    is_held_out: never trained on
    """

    kind: str
    token_ids: tuple[int, ...]
    is_held_out: bool


def read_prompts(
    files: list[Path], *, tokenizer: Tokenizer, template: ChatTemplate, seed: int
) -> list[Prompt]:
    """All prompts of the sources, shuffled by the seed; over-long ones are left out.

    files: JSON lines with `prompt` (chat) or `question` (arithmetic)

    Raises CheckpointError for a line that names neither.
    """
    generator = random.Random(seed)
    prompts = []
    for kind, text in [*_asked(files), *_code_tasks()]:
        message: dict[str, Json] = {"role": "user", "content": text}
        written = template.render([message], add_generation_prompt=True)
        ids = tokenizer.encode(written, add_special_tokens=False)
        if len(ids) <= _LONGEST_PROMPT:
            prompts.append(Prompt(kind, tuple(ids), is_held_out(text)))
    generator.shuffle(prompts)
    return prompts


def is_held_out(text: str) -> bool:
    """Whether a prompt is for evaluation alone: a function of its text."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4]) % HELD_OUT_ONE_IN == 0


def _asked(files: list[Path]) -> Iterator[tuple[str, str]]:
    for path in files:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                fields = json.loads(line)
                if "prompt" in fields:
                    yield "chat", str(fields["prompt"])
                elif "question" in fields:
                    yield "arithmetic", str(fields["question"])
                else:
                    raise CheckpointError(
                        f"line {number} of {path.name} has neither a prompt nor a question"
                    )


def _code_tasks() -> Iterator[tuple[str, str]]:
    """One task for each documented public function of the standard library."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            module = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in module.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                summary = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
                if summary:
                    names = ", ".join(argument.arg for argument in node.args.args)
                    yield "code", f"Write a Python function `{node.name}({names})`. {summary}"
