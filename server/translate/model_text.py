"""What translating needs of a model: its text side, and what the engine says of it."""

from dataclasses import dataclass, field

from sampler import ModelInfo
from weights.families import FamilyRule
from weights.text.chat_template import ChatTemplate
from weights.text.generation_defaults import GenerationDefaults
from weights.text.tokenizer import Tokenizer

# Fields of a body that a model may have a default of its own for.
SAMPLING_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class ModelText:
    """What the API process reads of a model's files, before there is an engine.

    rule:       how its family decodes; without it only the engine knows what `decoding` it can do
    generation: the checkpoint's own sampling settings, for requests that are silent
    """

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    rule: FamilyRule | None = None
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The text side of a model and what the engine that runs it says: lengths, modes, abilities."""

    text: ModelText
    info: ModelInfo

    @property
    def default_sampling(self) -> dict[str, float]:
        """Values of `SAMPLING_DEFAULTS` for requests that name none; a top_k of 0 is off."""
        neutral = {
            "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
        }  # fmt: skip
        own = {name: getattr(self.text.generation, name) for name in SAMPLING_DEFAULTS}
        return neutral | {name: value for name, value in own.items() if value is not None}
