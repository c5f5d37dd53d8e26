"""`GET /`: the playground, one page that asks nobody but this server."""

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response


def playground_router() -> APIRouter:
    """The route of the page, read once."""
    page = files("server").joinpath("static/index.html").read_bytes()
    headers = {
        "content-security-policy": content_policy(page.decode("utf-8")),
        "cache-control": "no-cache",
    }
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def playground() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    return router


def content_policy(page: str) -> str:
    """A policy that lets the page's own script and style run and nothing else."""
    scripts = _hashes(page, "script")
    styles = _hashes(page, "style")
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; style-src-attr "
        "'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _hashes(page: str, tag: str) -> str:
    found = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = (hashlib.sha256(text.encode("utf-8")).digest() for text in found)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
