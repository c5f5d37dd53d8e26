"""`POST /v1/responses`: a thin translation to chat; nothing is stored."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.exchange import Asked, generate
from server.openapi import describe
from server.read_body import ReadBody, body_reader
from server.replies.reply_format import ReplyFacts
from server.replies.reply_responses import ResponsesReply
from server.replies.usage import UsageCount
from server.schema.responses import ResponsesBody
from server.state import ServerState, server_state
from server.translate.as_chat import chat_of_responses
from server.translate.model_text import ModelTools
from server.translate.requests import Translated, translate_chat

router = APIRouter()


@router.post("/v1/responses", **describe(ResponsesBody, streams=True))
async def create_response(
    http: Request,
    state: Annotated[ServerState, Depends(server_state)],
    read: Annotated[ReadBody[ResponsesBody], Depends(body_reader(ResponsesBody))],
) -> Response:
    """Answer a conversation, as a list of items."""
    body = read.value
    chat = chat_of_responses(body)

    def translate(tools: ModelTools, id: str, now_s: float) -> Translated:
        return translate_chat(chat, tools, id=id, now_s=now_s)

    def make_reply(translated: Translated, facts: ReplyFacts, count: UsageCount) -> ResponsesReply:
        return ResponsesReply(body, translated, facts, count)

    asked = Asked("resp", body.model, bool(body.stream), read.ignored, body.timeout)
    return await generate(http, state, asked, translate=translate, make_reply=make_reply)
