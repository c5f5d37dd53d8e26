"""`GET /v1/models` and `GET /v1/models/{id}`."""

from typing import Annotated

from fastapi import APIRouter, Depends

from server.openapi import ERROR_RESPONSES
from server.schema.models import ModelCard, ModelList
from server.state import ServerState, server_state

router = APIRouter(responses=ERROR_RESPONSES)


@router.get("/v1/models")
async def list_models(state: Annotated[ServerState, Depends(server_state)]) -> ModelList:
    """Every name that the model is served by."""
    return ModelList(data=[_card(state, name) for name in state.model_names])


# A name may hold slashes, as hub ids do.
@router.get("/v1/models/{name:path}")
async def get_model(name: str, state: Annotated[ServerState, Depends(server_state)]) -> ModelCard:
    """One of the names."""
    return _card(state, state.check_model(name))


def _card(state: ServerState, name: str) -> ModelCard:
    info = state.engine.info
    return ModelCard(
        id=name,
        created=state.created_s,
        root=info.name,
        max_model_len=info.context_length,
        family=info.family,
        decoding_modes=list(info.modes),
        default_sampling=state.model.default_sampling,
    )
