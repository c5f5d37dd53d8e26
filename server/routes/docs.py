"""`GET /docs`: the routes and their bodies on one page, which loads nothing from elsewhere."""

from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

router = APIRouter()

_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


@router.get("/docs", include_in_schema=False)
async def docs(http: Request) -> Response:
    """Show what the server answers to."""
    app: FastAPI = http.app
    page = docs_page(app.openapi(), prefix=http.scope.get("root_path", ""))
    headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}
    return Response(page, media_type="text/html; charset=utf-8", headers=headers)


def docs_page(document: dict[str, Any], *, prefix: str) -> str:
    """The page of an OpenAPI document.

    prefix: of the server's paths behind a proxy
    """
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    routes = [
        _route(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    bodies = [
        _body(name, schema)
        for name, schema in document["components"]["schemas"].items()
        if name.endswith("Body")
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
        f'<body><h1>{title}</h1><p><a href="{escape(prefix)}/openapi.json">openapi.json</a> has '
        f"all of this for programs.</p><h2>Routes</h2><dl>{''.join(routes)}</dl>"
        f"<h2>Bodies</h2>{''.join(bodies)}</body></html>"
    )


def _route(path: str, method: str, operation: dict[str, Any]) -> str:
    said = str(operation.get("description", operation.get("summary", ""))).partition("\n")[0]
    name = escape(f"{method.upper()} {path}")
    content = operation.get("requestBody", {}).get("content", {})
    body = content.get("application/json", {}).get("schema", {}).get("$ref", "")
    name_of_body = escape(body.rpartition("/")[2])
    link = f' <a href="#{name_of_body}">{name_of_body}</a>' if name_of_body else ""
    return f"<dt><code>{name}</code>{link}</dt><dd>{escape(said)}</dd>"


def _body(name: str, schema: dict[str, Any]) -> str:
    fields = [
        f"<tr><td><code>{escape(field)}</code></td>"
        f"<td>{escape(str(about.get('description', '')))}</td></tr>"
        for field, about in schema.get("properties", {}).items()
    ]
    said = escape(str(schema.get("description", "")))
    return (
        f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{said}</p><table>{"".join(fields)}</table>'
    )
