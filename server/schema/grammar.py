"""Fields that hold an answer to a format."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, JsonValue, StringConstraints, Tag

from server.limits import MAX_GRAMMAR_CHARACTERS, MAX_REGEX_CHARACTERS
from server.schema.body import Body

Pattern = Annotated[str, StringConstraints(min_length=1, max_length=MAX_REGEX_CHARACTERS)]
GrammarText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_GRAMMAR_CHARACTERS)]

Choices = Annotated[
    list[Annotated[str, StringConstraints(min_length=1)]], Field(min_length=1, max_length=1024)
]


class NamedSchema(Body):
    """A JSON schema as `response_format` brings it; the answer always follows it strictly."""

    name: str | None = Field(None, max_length=64)
    description: str | None = None
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    """JSON that a schema allows."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class RegexFormat(Body):
    """Text that a regular expression matches as a whole."""

    type: Literal["regex"]
    regex: Pattern


class GrammarFormat(Body):
    """Text that a grammar derives: EBNF as llama.cpp writes it (GBNF), or Lark."""

    type: Literal["grammar"]
    grammar: GrammarText


def _format_tag(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return f"<{kind}>" if isinstance(kind, str) else None


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[JsonSchemaFormat, Tag("<json_schema>")]
    | Annotated[RegexFormat, Tag("<regex>")]
    | Annotated[GrammarFormat, Tag("<grammar>")],
    Discriminator(
        _format_tag,
        custom_error_type="format_type",
        custom_error_message="type must be text, json_object, json_schema, regex or grammar",
    ),
]


class StructuredOutputs(Body):
    """The same in the words of vLLM; exactly one field is given."""

    json_: dict[str, JsonValue] | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: Pattern | None = None
    choice: Choices | None = None
    grammar: GrammarText | None = None
