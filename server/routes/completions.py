"""`POST /v1/completions`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.openapi import describe
from server.read_body import ReadBody, body_reader
from server.reply import ReplyFacts
from server.reply_completions import CompletionReply
from server.routes.generate import generate
from server.schema.completions import Completion, CompletionBody
from server.state import ServerState, server_state
from server.translate import ModelTools, Translated, translate_completion

router = APIRouter()


@router.post("/v1/completions", **describe(CompletionBody, Completion, streams=True))
async def create_completion(
    http: Request,
    state: Annotated[ServerState, Depends(server_state)],
    read: Annotated[ReadBody[CompletionBody], Depends(body_reader(CompletionBody))],
) -> Response:
    """Complete texts."""

    def translate(body: CompletionBody, tools: ModelTools, id: str, now_s: float) -> Translated:
        return translate_completion(body, tools, id=id, now_s=now_s)

    def make_reply(
        body: CompletionBody, translated: Translated, facts: ReplyFacts
    ) -> CompletionReply:
        return CompletionReply(body, translated, facts, tokenizer=state.tokenizer)

    return await generate(
        http, state, read, id_prefix="cmpl", translate=translate, make_reply=make_reply
    )
