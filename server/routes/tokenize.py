"""`POST /tokenize` and `POST /detokenize`."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool

from server.error_responses import invalid
from server.openapi import describe
from server.read_body import ReadBody, body_reader
from server.replies.reply_format import token_text
from server.schema.tokenize import DetokenizeBody, Detokenized, TokenizeBody, Tokenized
from server.state import ServerState, server_state
from server.translate.chat_prompt import render_chat
from server.translate.model_text import ModelTools
from server.translate.plain_text import encode_marked

router = APIRouter()


@router.post("/tokenize", **describe(TokenizeBody, Tokenized), response_model_exclude_unset=True)
async def tokenize(
    state: Annotated[ServerState, Depends(server_state)],
    read: Annotated[ReadBody[TokenizeBody], Depends(body_reader(TokenizeBody))],
) -> Tokenized:
    """Cut a text, or a conversation behind the chat template, into tokens."""
    state.check_model(read.value.model)
    return await run_in_threadpool(_tokenize, read.value, state.tools)


@router.post("/detokenize", **describe(DetokenizeBody, Detokenized))
async def detokenize(
    state: Annotated[ServerState, Depends(server_state)],
    read: Annotated[ReadBody[DetokenizeBody], Depends(body_reader(DetokenizeBody))],
) -> Detokenized:
    """Turn tokens into text."""
    state.check_model(read.value.model)
    return await run_in_threadpool(_detokenize, read.value, state.tools)


def _tokenize(body: TokenizeBody, tools: ModelTools) -> Tokenized:
    if (body.prompt is None) == (body.messages is None):
        raise invalid("give either prompt or messages", param="prompt")
    if body.messages is None:
        text, adds_special = body.prompt or "", body.add_special_tokens is not False
    else:
        continues = bool(body.continue_final_message)
        text = render_chat(
            body.messages,
            tools,
            add_generation_prompt=(
                not continues if body.add_generation_prompt is None else body.add_generation_prompt
            ),
            continue_final_message=continues,
            options=body.chat_template_kwargs,
        )
        adds_special = bool(body.add_special_tokens)
    if body.messages is None:
        token_ids = tools.tokenizer.encode(text, add_special_tokens=adds_special)
    else:
        token_ids = encode_marked(tools.tokenizer, text, add_special_tokens=adds_special)
    answer = Tokenized(
        count=len(token_ids), max_model_len=tools.info.context_length, tokens=token_ids
    )
    if not body.return_token_strs:
        return answer
    texts = [token_text(tools.tokenizer, token_id) for token_id in token_ids]
    return answer.model_copy(update={"token_strs": texts})


def _detokenize(body: DetokenizeBody, tools: ModelTools) -> Detokenized:
    for index, token_id in enumerate(body.tokens):
        if token_id >= tools.info.vocab_size:
            raise invalid(
                f"token ids must be below {tools.info.vocab_size}, got {token_id}",
                param=f"tokens.{index}",
            )
    return Detokenized(prompt=tools.tokenizer.decode(body.tokens, skip_special_tokens=False))
