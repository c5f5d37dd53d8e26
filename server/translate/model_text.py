"""`ModelTools`: what translating a body needs of the served model."""

from dataclasses import dataclass

from sampler import ModelInfo
from weights.families import FamilyRule
from weights.text.chat_template import ChatTemplate
from weights.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ModelTools:
    """What translating needs of the served model.

    rule: how its family decodes; without it only the engine knows what `decoding` it can do
    """

    info: ModelInfo
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    rule: FamilyRule | None = None
