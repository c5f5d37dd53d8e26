"""`POST /v1/completions`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.exchange import Asked, generate
from server.openapi import describe
from server.read_body import ReadBody, body_reader
from server.replies.reply_completions import CompletionReply
from server.replies.reply_format import ReplyFacts
from server.replies.usage import UsageCount
from server.schema.completions import Completion, CompletionBody
from server.state import ServerState, server_state
from server.translate.model_text import ModelTools
from server.translate.requests import Translated, translate_completion

router = APIRouter()


@router.post("/v1/completions", **describe(CompletionBody, Completion, streams=True))
async def create_completion(
    http: Request,
    state: Annotated[ServerState, Depends(server_state)],
    read: Annotated[ReadBody[CompletionBody], Depends(body_reader(CompletionBody))],
) -> Response:
    """Complete texts."""

    def translate(tools: ModelTools, id: str, now_s: float) -> Translated:
        return translate_completion(read.value, tools, id=id, now_s=now_s)

    def make_reply(translated: Translated, facts: ReplyFacts, count: UsageCount) -> CompletionReply:
        return CompletionReply(read.value, translated, facts, count, tokenizer=state.tokenizer)

    return await generate(
        http, state, Asked.of(read, "cmpl"), translate=translate, make_reply=make_reply
    )
