"""`POST /v1/messages` and its token count: a thin translation to chat in Anthropic's shape."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from server.exchange import Asked, generate
from server.openapi import describe
from server.read_body import ReadBody, body_reader
from server.replies.reply_format import ReplyFacts
from server.replies.reply_messages import MessagesReply
from server.replies.usage import UsageCount
from server.schema.messages import CountBody, MessagesBody
from server.state import ServerState, server_state
from server.translate.as_chat import chat_of_messages
from server.translate.model_text import ModelTools
from server.translate.requests import Translated, count_chat_tokens, translate_chat

router = APIRouter()


class TokenCount(BaseModel):
    """Tokens of a conversation."""

    input_tokens: int


@router.post("/v1/messages", **describe(MessagesBody, streams=True))
async def create_message(
    http: Request,
    state: Annotated[ServerState, Depends(server_state)],
    read: Annotated[ReadBody[MessagesBody], Depends(body_reader(MessagesBody))],
) -> Response:
    """Answer a conversation, as content blocks."""
    body = read.value
    chat = chat_of_messages(body)

    def translate(tools: ModelTools, id: str, now_s: float) -> Translated:
        return translate_chat(chat, tools, id=id, now_s=now_s)

    asked = Asked("msg", body.model, bool(body.stream), read.ignored, body.timeout)
    return await generate(http, state, asked, translate=translate, make_reply=_make_reply)


@router.post("/v1/messages/count_tokens", **describe(CountBody, TokenCount))
async def count_message_tokens(
    state: Annotated[ServerState, Depends(server_state)],
    read: Annotated[ReadBody[CountBody], Depends(body_reader(CountBody))],
) -> TokenCount:
    """Count the tokens of a conversation."""
    state.check_model(read.value.model)
    chat = chat_of_messages(read.value)
    count = await run_in_threadpool(count_chat_tokens, chat, state.tools)
    return TokenCount(input_tokens=count)


def _make_reply(translated: Translated, facts: ReplyFacts, count: UsageCount) -> MessagesReply:
    return MessagesReply(translated, facts, count)
