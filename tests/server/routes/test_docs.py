"""`/docs`: every route and body on one page that loads nothing."""

import re

import pytest

pytestmark = pytest.mark.anyio


async def test_every_route_and_every_field_is_there(serve):
    async with serve() as served:
        response = await served.client.get("/docs")
        document = served.app.openapi()
    page = response.text
    assert response.headers["content-type"].startswith("text/html")
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in page
    assert "<code>bad_words</code>" in page
    targets = set(re.findall(r'href="#(\w+)"', page))
    assert targets
    assert targets <= set(re.findall(r'id="(\w+)"', page))


async def test_the_page_loads_nothing_from_elsewhere(serve):
    async with serve() as served:
        response = await served.client.get("/docs")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert re.findall(r"<(?:script|link|img|iframe)|https?://", response.text) == []
