"""The OpenAPI document: bodies are read by our own reader, so routes say here what they take."""

from collections.abc import Callable
from typing import Any, TypedDict

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from server.schema.chat import ChatBody
from server.schema.completions import CompletionBody
from server.schema.errors import ErrorBody
from server.schema.messages import CountBody, MessagesBody
from server.schema.responses import ResponsesBody
from server.schema.tokenize import DetokenizeBody, TokenizeBody

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be served."},
    "5XX": {"model": ErrorBody, "description": "The server cannot serve it now."},
}

_BODIES: tuple[type[BaseModel], ...] = (
    ChatBody,
    CompletionBody,
    CountBody,
    DetokenizeBody,
    MessagesBody,
    ResponsesBody,
    TokenizeBody,
)
_REF_TEMPLATE = "#/components/schemas/{model}"


class Description(TypedDict):
    """Arguments of a route."""

    responses: dict[int | str, dict[str, Any]]
    openapi_extra: dict[str, Any]


def describe(
    body: type[BaseModel], answer: type[BaseModel] | None = None, *, streams: bool = False
) -> Description:
    """What a route takes and gives; without `answer` it gives JSON of the other API's shape."""
    success: dict[str, Any] = {"description": "The answer."}
    content: dict[str, Any] = {}
    if answer is not None:
        success["model"] = answer
    else:
        content["application/json"] = {"schema": {"type": "object"}}
    if streams:
        content["text/event-stream"] = {"schema": {}}
    if content:
        success["content"] = content
    return {
        "responses": {200: success, **ERROR_RESPONSES},
        "openapi_extra": _body_schema(body),
    }


def _body_schema(body: type[BaseModel]) -> dict[str, Any]:
    """What a route takes."""
    schema = {"$ref": _REF_TEMPLATE.format(model=body.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def openapi_of(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """A replacement of `app.openapi` that writes the bodies' schemas."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    return openapi


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for body in _BODIES:
        schema = body.model_json_schema(ref_template=_REF_TEMPLATE)
        schemas.update(schema.pop("$defs", {}))
        schemas[body.__name__] = schema
    return document
