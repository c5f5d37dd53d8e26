"""`POST /v1/chat/completions`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.exchange import Asked, generate
from server.openapi import describe
from server.read_body import ReadBody, body_reader
from server.replies.reply_chat import ChatReply
from server.replies.reply_format import ReplyFacts
from server.replies.usage import UsageCount
from server.schema.chat import ChatBody, ChatCompletion
from server.state import ServerState, server_state
from server.translate.model_text import ModelTools
from server.translate.requests import Translated, translate_chat

router = APIRouter()


@router.post("/v1/chat/completions", **describe(ChatBody, ChatCompletion, streams=True))
async def create_chat_completion(
    http: Request,
    state: Annotated[ServerState, Depends(server_state)],
    read: Annotated[ReadBody[ChatBody], Depends(body_reader(ChatBody))],
) -> Response:
    """Answer a conversation."""

    def translate(tools: ModelTools, id: str, now_s: float) -> Translated:
        return translate_chat(read.value, tools, id=id, now_s=now_s)

    def make_reply(translated: Translated, facts: ReplyFacts, count: UsageCount) -> ChatReply:
        return ChatReply(read.value, translated, facts, count, tokenizer=state.tokenizer)

    return await generate(
        http, state, Asked.of(read, "chatcmpl"), translate=translate, make_reply=make_reply
    )
