"""One table from exception to status, type and code; every error leaves through it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.responses import Response

from sampler.border.errors import EngineStopped, Overloaded, PromptTooLong, RequestError
from server.limits import MAX_REPORTED_ERRORS
from server.schema.errors import ErrorBody, ErrorDetail

# Draining servers and dead engines are replaced within seconds, not milliseconds.
NOT_READY_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error as it is sent: status, body fields, headers beside the usual ones."""

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class ApiError(Exception):
    """Raised where a request cannot be served; carries its own answer."""

    def __init__(self, answer: ErrorAnswer) -> None:
        super().__init__(answer.message)
        self.answer = answer


def invalid(message: str, *, param: str | None, code: str = "invalid_value") -> ApiError:
    """A 400 that names the field at fault."""
    return ApiError(ErrorAnswer(400, "invalid_request_error", code, message, param=param))


def unsupported(param: str, reason: str) -> ApiError:
    """A 400 for a field whose meaning this server cannot honour."""
    return ApiError(
        ErrorAnswer(
            400,
            "invalid_request_error",
            "unsupported_parameter",
            f"{param} is not supported: {reason}",
            param=param,
        )
    )


def unavailable(code: str, message: str, *, retry_after_s: float = NOT_READY_RETRY_S) -> ApiError:
    """A 503 that says when to try again."""
    return ApiError(ErrorAnswer(503, "server_error", code, message, retry_after_s=retry_after_s))


def deadline_exceeded(timeout_s: float) -> ApiError:
    """A 504 for an answer that took longer than the request or the server allows."""
    return ApiError(
        ErrorAnswer(
            504,
            "server_error",
            "deadline_exceeded",
            f"the answer was not complete within {timeout_s:g} seconds",
        )
    )


INTERNAL_ERROR = ErrorAnswer(
    500,
    "server_error",
    "internal_error",
    "the server failed on this request",
    # The same request would fail the same way: SDKs shall not send it three times.
    headers={"x-should-retry": "false"},
)

_HTTP_CODES = {
    400: ("invalid_request_error", "invalid_value"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    413: ("invalid_request_error", "body_too_large"),
    415: ("invalid_request_error", "unsupported_media_type"),
}


def answer_of(error: Exception) -> ErrorAnswer:
    """The answer to an exception; INTERNAL_ERROR for one that the table does not know."""
    if isinstance(error, ApiError):
        return error.answer
    if isinstance(error, ValidationError):
        return _of_validation(error)
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, Overloaded):
        return unavailable(
            "server_overloaded", str(error), retry_after_s=error.retry_after_s
        ).answer
    if isinstance(error, EngineStopped):
        return unavailable("engine_dead", "the engine has stopped").answer
    if isinstance(error, PromptTooLong):
        return invalid(str(error), param=error.field, code="context_length_exceeded").answer
    if isinstance(error, RequestError):
        return invalid(str(error), param=error.field).answer
    return INTERNAL_ERROR


def _of_http(error: HTTPException) -> ErrorAnswer:
    kind, code = _HTTP_CODES.get(error.status_code, ("invalid_request_error", "http_error"))
    return ErrorAnswer(
        error.status_code, kind, code, str(error.detail), headers=dict(error.headers or {})
    )


def _of_validation(error: ValidationError) -> ErrorAnswer:
    # Inputs stay out of the message: they can be large, and they are the client's own.
    details = error.errors(include_url=False, include_input=False, include_context=False)
    if details[0]["type"] == "json_invalid":
        return invalid(
            f"the body is not valid JSON: {details[0]['msg']}", param=None, code="invalid_json"
        ).answer
    shown = "; ".join(_sentence(detail) for detail in details[:MAX_REPORTED_ERRORS])
    return invalid(shown, param=param_path(details[0]["loc"]) or None).answer


def _sentence(detail: ErrorDetails) -> str:
    message = detail["msg"].removeprefix("Value error, ")
    path = param_path(detail["loc"])
    return f"{path}: {message}" if path else message


def param_path(location: Sequence[int | str]) -> str:
    """The dotted path of a field; names of union members, written `<like this>`, are left out."""
    return ".".join(str(part) for part in location if not str(part).startswith("<"))


def error_body(answer: ErrorAnswer) -> bytes:
    """The JSON of an error."""
    detail = ErrorDetail(
        message=answer.message, type=answer.type, param=answer.param, code=answer.code
    )
    return ErrorBody(error=detail).model_dump_json().encode()


def error_response(answer: ErrorAnswer, *, has_type: bool = False) -> Response:
    """The HTTP response of an error; `has_type` marks the body itself as an error."""
    headers = dict(answer.headers)
    if answer.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(answer.retry_after_s)))
        headers["retry-after-ms"] = str(max(1, math.ceil(answer.retry_after_s * 1000)))
    body = error_body(answer)
    if has_type:
        body = b'{"type":"error",' + body[1:]
    return Response(body, answer.status, headers=headers, media_type="application/json")
