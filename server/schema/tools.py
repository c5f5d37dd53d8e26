"""Tools of a request and how the model may choose among them."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, JsonValue, StringConstraints, Tag

from server.limits import MAX_TOOLS
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


class AllowedTools(Body):
    """Which tools may be called, and whether one of them must be."""

    mode: Literal["auto", "required"]
    tools: list[NamedChoice] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedChoice(Body):
    """Only some of the tools may be called this time."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def choice_tag(value: object) -> str:
    """Which member of a union of choices a value is of."""
    if isinstance(value, str):
        return "<word>"
    is_list = isinstance(value, dict) and value.get("type") == "allowed_tools"
    return "<allowed>" if is_list else "<function>"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")]
    | Annotated[NamedChoice, Tag("<function>")]
    | Annotated[AllowedChoice, Tag("<allowed>")],
    Discriminator(choice_tag),
]

Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]
