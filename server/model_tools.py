"""`ModelTools`: what translating a body needs of the served model."""

from dataclasses import dataclass

from sampler import ModelInfo
from weights.chat_template import ChatTemplate
from weights.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ModelTools:
    """What translating needs of the served model."""

    info: ModelInfo
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
