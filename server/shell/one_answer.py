"""One prompt from the shell, through the same translation and the same engine as over HTTP."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError

from sampler import RequestError
from server.engine import Engine
from server.error_responses import ApiError, answer_of
from server.replies.running_answers import Answers
from server.replies.usage import UsageCount
from server.schema.chat import ChatBody
from server.schema.common import Usage
from server.schema.completions import CompletionBody
from server.settings import Settings
from server.shell.model_source import TextSide
from server.translate.model_text import ModelTools
from server.translate.requests import Translated, translate_chat, translate_completion
from server.watch.metrics import ServerMetrics


@dataclass(frozen=True, slots=True)
class CompleteOptions:
    """A prompt and how to answer it; `is_raw` continues it without a chat template."""

    prompt: str
    is_raw: bool
    max_tokens: int
    temperature: float
    top_p: float
    mode: str
    seed: int | None


async def complete(
    engine: Engine,
    text_side: TextSide,
    settings: Settings,
    options: CompleteOptions,
    *,
    write: Callable[[str], None],
) -> Usage:
    """Write the answer piece by piece; what it took.

    Raises ValueError for options that cannot be served and EngineStopped without an engine.
    """
    await engine.start()
    try:
        tools = ModelTools(
            engine.info, text_side.tokenizer, text_side.chat_template, text_side.rule
        )
        try:
            translated = _translate(options, tools)
        except (ApiError, RequestError, ValidationError) as error:
            raise ValueError(answer_of(error).message) from error
        metrics = ServerMetrics(
            engine,
            settings,
            model_name=engine.info.name,
            max_tokens=engine.info.context_length,
        )
        count = UsageCount([len(translated.prompts[0].token_ids)], per_prompt=1)
        answers = Answers(
            engine,
            text_side.tokenizer,
            translated.requests,
            rules=translated.rules,
            metrics=metrics,
        )
        try:
            while not answers.is_finished:
                for choice in await answers.next_pieces(timeout_s=None):
                    write(choice.piece.text)
                    count.add(choice.index, choice.piece)
        finally:
            answers.close()
        return count.usage()
    finally:
        await engine.stop(drain_s=0.0)


def _translate(options: CompleteOptions, tools: ModelTools) -> Translated:
    fields = {
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
        "decoding": {"mode": options.mode},
    }
    now_s = time.monotonic()
    if options.is_raw or tools.chat_template is None:
        body = CompletionBody.model_validate({"prompt": options.prompt, **fields})
        return translate_completion(body, tools, id="cli", now_s=now_s)
    messages = [{"role": "user", "content": options.prompt}]
    chat = ChatBody.model_validate({"messages": messages, **fields})
    return translate_chat(chat, tools, id="cli", now_s=now_s)
