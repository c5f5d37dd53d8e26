"""Parts of messages that are no text: known by their type, and refused by name."""

from typing import TypeVar

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

UNSUPPORTED_PART = "unsupported_part"
MEDIA_TYPES = frozenset(
    {
        "image_url", "input_image", "image", "input_audio", "audio", "audio_url", "video_url",
        "video", "file", "input_file", "document",
    }
)  # fmt: skip

PartT = TypeVar("PartT")


def refuse_media(value: PartT) -> PartT:
    """The same part, or the same type of one; raises a validation error for what is no text."""
    kind = value.get("type") if isinstance(value, dict) else value
    if isinstance(kind, str) and kind in MEDIA_TYPES:
        raise PydanticCustomError(
            UNSUPPORTED_PART, "{kind} is not supported: this server reads text", {"kind": kind}
        )
    return value


TextOnly = BeforeValidator(refuse_media)
