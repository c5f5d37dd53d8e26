"""Keys, request ids, CORS and the headers of every response."""

import pytest

from server.middleware.auth import OPEN_PATHS
from tests.server.asgi import AsgiExchange
from tests.server.conftest import error_of

pytestmark = pytest.mark.anyio

KEY = {"authorization": "Bearer one"}


def _routes(app):
    return ["/openapi.json", *sorted(app.openapi()["paths"])]


async def test_every_route_but_the_open_ones_asks_for_a_key(serve):
    async with serve(api_key=["one", "two"]) as served:
        closed = [path for path in _routes(served.app) if path not in OPEN_PATHS]
        answers = [await served.client.get(path) for path in [*closed, "/nowhere"]]
    assert "/v1/chat/completions" in closed
    assert "/openapi.json" in closed
    assert {answer.status_code for answer in answers} == {401}
    assert error_of(answers[0])["code"] == "invalid_api_key"
    assert error_of(answers[0])["type"] == "authentication_error"
    assert answers[0].headers["www-authenticate"] == "Bearer"


async def test_open_routes_ask_for_none(serve):
    async with serve(api_key=["one"]) as served:
        paths = [path for path in _routes(served.app) if path in OPEN_PATHS]
        answers = [await served.client.get(path) for path in paths]
    assert {"/livez", "/health", "/ready", "/version", "/metrics"} <= set(paths)
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer one"},
        {"authorization": "bearer two"},
        {"x-api-key": "two"},
    ],
)
async def test_any_of_the_keys_opens(serve, headers):
    async with serve(api_key=["one", "two"]) as served:
        response = await served.client.get("/v1/models", headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer on"},
        {"authorization": "Bearer onee"},
        {"authorization": "Basic one"},
        {"authorization": "one"},
        {"x-api-key": ""},
        {"authorization": b"Bearer \xff\xfe"},
    ],
)
async def test_nothing_else_does(serve, headers):
    async with serve(api_key=["one", "two"]) as served:
        response = await served.client.get("/v1/models", headers=headers)
    assert response.status_code == 401


async def test_keys_come_from_a_file_too(serve, tmp_path):
    file = tmp_path / "keys"
    file.write_text("alpha\n\n beta \n")
    async with serve(api_key_file=file) as served:
        known = await served.client.get("/v1/models", headers={"x-api-key": "beta"})
        unknown = await served.client.get("/v1/models", headers={"x-api-key": ""})
    assert (known.status_code, unknown.status_code) == (200, 401)


@pytest.mark.parametrize("host", [b"a/../livez?x=", b"test/livez#", b"localhost:1/metrics"])
async def test_the_host_header_cannot_open_a_route(serve, host):
    async with serve(api_key=["one"]) as served:
        exchange = AsgiExchange(served.app, "/v1/completions", {}, headers=[(b"host", host)])
        await exchange.run()
    assert exchange.status == 401


async def test_the_path_counts_without_the_root_path(serve):
    async with serve(api_key=["one"]) as served:
        closed = AsgiExchange(served.app, "/livez/v1/models", {})
        closed.scope |= {"root_path": "/livez", "method": "GET"}
        await closed.run()
        opened = AsgiExchange(served.app, "/proxy/livez", {})
        opened.scope |= {"root_path": "/proxy", "method": "GET"}
        await opened.run()
    assert (closed.status, opened.status) == (401, 200)


@pytest.mark.parametrize("given", ["abc-1.2_3", "x" * 128])
async def test_a_request_id_is_echoed(serve, given):
    async with serve() as served:
        response = await served.client.get("/livez", headers={"x-request-id": given})
    assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", "<script>", "a;b"])
async def test_a_request_id_that_is_none_is_replaced(serve, given):
    async with serve() as served:
        response = await served.client.get("/livez", headers={"x-request-id": given})
    assert response.headers["x-request-id"] != given
    assert len(response.headers["x-request-id"]) == 32


async def test_errors_have_an_id_too(serve):
    async with serve() as served:
        response = await served.client.get("/nowhere", headers={"x-request-id": "me"})
    assert response.headers["x-request-id"] == "me"
    assert int(response.headers["openai-processing-ms"]) >= 0


async def test_browsers_are_told_not_to_guess_or_frame(serve):
    async with serve() as served:
        response = await served.client.get("/nowhere")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"


async def test_no_origin_is_let_in_by_default(serve):
    async with serve() as served:
        response = await served.client.get("/v1/models", headers={"origin": "https://a.example"})
    assert "access-control-allow-origin" not in response.headers


async def test_a_named_origin_is_let_in_and_may_ask_first(serve):
    asking = {
        "origin": "https://a.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    async with serve(allowed_origins=["https://a.example"], api_key=["one"]) as served:
        first = await served.client.options("/v1/chat/completions", headers=asking)
        then = await served.client.get("/v1/models", headers=KEY | {"origin": "https://a.example"})
        other = await served.client.get("/v1/models", headers=KEY | {"origin": "https://b.example"})
    assert first.status_code == 200
    assert first.headers["access-control-allow-origin"] == "https://a.example"
    assert then.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in other.headers
