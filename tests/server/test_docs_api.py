"""`docs/api.md` against the code: its requests work, its tables are complete."""

import json
import re
from pathlib import Path

import pytest

from server.read_body import BOOKKEEPING, REFUSED
from server.schema.chat import ChatBody
from server.schema.common import DecodingBody
from server.schema.completions import CompletionBody
from tests.server.scripted_engine import ScriptedEngine

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
REQUESTS = re.findall(r"```json\n(POST) (\S+)\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.anyio
@pytest.mark.parametrize(("method", "path", "body"), REQUESTS)
async def test_every_request_of_the_page_is_answered(serve, method, path, body):
    async with serve(ScriptedEngine(context_length=4096), strict_params=True) as served:
        response = await served.client.request(method, path, json=json.loads(body))
    assert response.status_code == 200, response.text


def test_the_page_has_requests():
    assert len(REQUESTS) >= 4


@pytest.mark.parametrize(
    "names",
    [
        ChatBody.model_fields,
        CompletionBody.model_fields,
        DecodingBody.model_fields,
        BOOKKEEPING,
        set(REFUSED) - {"images", "prompt", "json_schema", "regex", "grammar", "ebnf",
                        "guided_regex", "guided_choice", "guided_grammar"},
    ],
)  # fmt: skip
def test_every_field_is_on_the_page(names):
    assert [name for name in names if f"`{name}`" not in PAGE] == []


@pytest.mark.anyio
async def test_every_route_is_on_the_page(serve):
    async with serve() as served:
        paths = list(served.app.openapi()["paths"])
    assert [path for path in paths if path.replace(":path", "") not in PAGE] == []


def test_every_error_code_is_on_the_page():
    sources = (Path(__file__).parents[2] / "server").rglob("*.py")
    text = "".join(path.read_text() for path in sources)
    thrown = re.findall(r"unavailable\(\s*\"(\w+)\"|code=\"(\w+)\"", text)
    thrown += re.findall(r"\d{3},\s*\"\w+\",\s*\"(\w+)\"()", text)
    codes = {code for pair in thrown for code in pair if code}
    assert {"server_overloaded", "invalid_api_key", "unprocessable"} <= codes
    assert [code for code in codes - {"invalid_http"} if f"`{code}`" not in PAGE] == []
