"""The error body of the API."""

from pydantic import BaseModel, ConfigDict


class ErrorDetail(BaseModel):
    """What went wrong.

    param: dotted path of the field at fault, when there is one
    code:  stable word that programs can act on
    """

    model_config = ConfigDict(frozen=True)

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every 4xx and 5xx answer, and the last event of a stream that failed."""

    model_config = ConfigDict(frozen=True)

    error: ErrorDetail
