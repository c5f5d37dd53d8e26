"""Tools of a request and how the model may choose among them."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, JsonValue, StringConstraints, Tag

from server.schema.body import Body

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class FunctionTool(Body):
    """A function the model may call; parameters are a JSON schema of its arguments."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionTool


class NamedFunction(Body):
    """The function that must be called."""

    name: str


class NamedChoice(Body):
    """One function must be called."""

    type: Literal["function"]
    function: NamedFunction


def _choice_tag(value: object) -> str:
    return "<word>" if isinstance(value, str) else "<function>"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")]
    | Annotated[NamedChoice, Tag("<function>")],
    Discriminator(_choice_tag),
]

Tools = Annotated[list[Tool], Field(max_length=128)]
