"""Bodies of `/tokenize` and `/detokenize`."""

from pydantic import BaseModel, Field, JsonValue

from server.limits import MAX_MESSAGES
from server.schema.body import Body
from server.schema.chat import Message, TemplateName
from server.schema.common import TokenId


class TokenizeBody(Body):
    """Text or a conversation to be cut into tokens."""

    model: str | None = Field(None, max_length=512)
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    add_special_tokens: bool | None = Field(
        None, description="True by default for a prompt, false for messages."
    )
    add_generation_prompt: bool | None = Field(None, description="True by default.")
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[TemplateName, JsonValue] | None = Field(None, max_length=16)
    return_token_strs: bool | None = None


class Tokenized(BaseModel):
    """The tokens of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeBody(Body):
    """Token ids to be turned into text."""

    model: str | None = Field(None, max_length=512)
    tokens: list[TokenId] = Field(max_length=1 << 20)


class Detokenized(BaseModel):
    """The text of the tokens."""

    prompt: str
