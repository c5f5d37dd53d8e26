"""Bodies of `/v1/models`."""

from typing import Literal

from pydantic import BaseModel


class ModelCard(BaseModel):
    """A served name of the model.

    max_model_len:  prompt and answer together, in tokens
    root:           the model's own name, which an alias stands for
    decoding_modes: what `decoding.mode` may force
    default_sampling: what a request that names none of these fields is answered with
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "estuary"
    root: str
    max_model_len: int
    family: str
    decoding_modes: list[str]
    default_sampling: dict[str, float]


class ModelList(BaseModel):
    """Every served name."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
