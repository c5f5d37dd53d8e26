"""API keys: every route asks for one, but for a short list of open ones."""

import hashlib
import secrets

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.error_responses import ErrorAnswer, error_response

# Probes and scrapers bring no key; the page asks its user for one.
OPEN_PATHS = frozenset(
    {"/", "/livez", "/health", "/ping", "/ready", "/version", "/load", "/metrics"}
)

_REFUSED = ErrorAnswer(
    401,
    "authentication_error",
    "invalid_api_key",
    "a valid API key is needed, as 'Authorization: Bearer KEY'",
    headers={"www-authenticate": "Bearer"},
)


class Authenticate:
    """Lets requests with one of the keys through; with no keys, all of them.

    It decides on the path that routing sees, never on a URL rebuilt from headers.
    """

    def __init__(self, app: ASGIApp, *, keys: tuple[str, ...]) -> None:
        self._app = app
        self._digests = tuple(_digest(key) for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] != "http" or not self._digests or self._is_open(scope):
            await self._app(scope, receive, send)
            return
        if self._is_known(_given_key(Headers(scope=scope))):
            await self._app(scope, receive, send)
            return
        await error_response(_REFUSED)(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        return get_route_path(scope) in OPEN_PATHS

    def _is_known(self, key: str) -> bool:
        # Every digest is compared whatever the others said, so time tells nothing of them.
        digest = _digest(key)
        matches = [secrets.compare_digest(digest, known) for known in self._digests]
        return any(matches)


def _given_key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    return headers.get("x-api-key", "")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()
