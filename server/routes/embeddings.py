"""`POST /v1/embeddings`: refused by name, as no model that this server runs was made for it."""

from typing import NoReturn

from fastapi import APIRouter

from server.error_responses import unsupported
from server.openapi import ERROR_RESPONSES
from server.schema.errors import ErrorBody

router = APIRouter(responses=ERROR_RESPONSES)


@router.post("/v1/embeddings", status_code=400, response_model=ErrorBody)
async def create_embeddings() -> NoReturn:
    """Say that there are none: language models like these make no embeddings worth the name."""
    raise unsupported("model", "the model makes no embeddings")
