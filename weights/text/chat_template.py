"""`ChatTemplate`: messages to prompt text, by the checkpoint's own template in a sandbox."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from weights.config_fields import Json
from weights.errors import TemplateError

# Far above any context we serve, far below what would hurt the process.
MAX_PROMPT_CHARACTERS = 16 * 1024 * 1024


class ChatTemplate:
    """A compiled template; safe to share between threads."""

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str] | None = None,
        max_characters: int = MAX_PROMPT_CHARACTERS,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Compile a template.

        special_tokens: what `bos_token`, `eos_token` and the like stand for inside it. Raises
        TemplateError when the source is no template.
        """
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateError(f"the chat template cannot be read: {error}") from error
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._max_characters = max_characters

    def render(
        self,
        messages: Sequence[Mapping[str, Json]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Json]] | None = None,
        **options: Json,
    ) -> str:
        """Write messages as a prompt.

        add_generation_prompt: end with the beginning of the assistant's turn
        tools:                 JSON schemas of the functions the model may call
        options:               further names the template knows, such as enable_thinking

        Raises TemplateError when the template refuses the messages, fails, or writes more than
        the limit.
        """
        names = {
            **self._special_tokens,
            **options,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        pieces: list[str] = []
        left = self._max_characters
        try:
            for piece in self._template.generate(names):
                left -= len(piece)
                if left < 0:
                    raise TemplateError(
                        f"the chat template wrote more than {self._max_characters} characters"
                    )
                pieces.append(piece)
        except TemplateError:
            raise
        except Exception as error:
            raise TemplateError(f"the chat template refused the messages: {error}") from error
        return "".join(pieces)


class _GenerationBlock(jinja2.ext.Extension):
    """Lets `{% generation %}` through, with which training code marks the answer."""

    tags = {"generation"}  # noqa: RUF012 -- declared so by its base

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Replace the block by what it holds."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Json,
    indent: int | None = None,
    *,
    ensure_ascii: bool = False,
    sort_keys: bool = False,
    separators: tuple[str, str] | None = None,
) -> str:
    """Write JSON as it stands; jinja2's own filter escapes it for HTML."""
    return json.dumps(
        value,
        indent=indent,
        ensure_ascii=ensure_ascii,
        sort_keys=sort_keys,
        separators=separators,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
