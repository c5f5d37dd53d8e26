"""Probes, version and metrics; open to all, and silent about the machine."""

from typing import Annotated

from fastapi import APIRouter, Depends
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import Response

from server.error_responses import unavailable
from server.openapi import ERROR_RESPONSES
from server.state import ServerState, server_state
from server.version import package_version

router = APIRouter(responses=ERROR_RESPONSES)

State = Annotated[ServerState, Depends(server_state)]


class Version(BaseModel):
    """The server's version."""

    version: str


class Status(BaseModel):
    """The answer of a probe that passes."""

    status: str


class Load(BaseModel):
    """How busy the server is.

    server_load: answers being made or waited for (vLLM's name)
    running, waiting: of them, how many have a seat in the engine, and how many have none yet
    """

    server_load: int
    running: int
    waiting: int


@router.head("/livez", include_in_schema=False)
@router.get("/livez")
async def live() -> Status:
    """Whether this process answers at all."""
    return Status(status="ok")


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(state: State) -> Status:
    """Whether the engine runs and gets on with its work."""
    _check_engine(state)
    return Status(status="ok")


@router.post("/ping", include_in_schema=False)
@router.get("/ping")
async def ping(state: State) -> Status:
    """Say the same as `/health`, where platforms that run containers ask for it."""
    return await health(state)


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready(state: State) -> Status:
    """Whether new requests should be sent here."""
    _check_engine(state)
    if state.is_draining:
        raise unavailable("draining", "the server is shutting down")
    if not state.engine.is_ready:
        raise unavailable("not_ready", "the server is not ready yet")
    return Status(status="ok")


def _check_engine(state: ServerState) -> None:
    if not state.engine.is_alive:
        raise unavailable("engine_dead", "the engine is not running")
    if state.is_stuck:
        raise unavailable("engine_stuck", "requests wait but the engine does not step")


@router.get("/version")
async def version() -> Version:
    """The server's version."""
    return Version(version=package_version())


@router.get("/load")
async def load(state: State) -> Load:
    """How busy the server is, for whoever shares out requests."""
    metrics = state.engine.metrics
    return Load(
        server_load=state.engine.num_open,
        running=metrics.num_running,
        waiting=metrics.num_waiting,
    )


@router.get("/metrics", response_class=Response)
async def metrics(state: State) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(state.metrics.exposition(), headers={"content-type": CONTENT_TYPE_LATEST})
