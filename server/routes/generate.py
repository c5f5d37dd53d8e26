"""What chat and text completions do alike: submit, then answer whole or as a stream."""

import logging
import time
import uuid
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from sampler import EngineStopped, Overloaded
from server.answers import Answers
from server.error_responses import ApiError
from server.event_stream import EventStream, unless_disconnected
from server.read_body import ReadBody
from server.reply import Reply, ReplyFacts, StreamRules, chunk_json, write_events
from server.schema.common import SamplingBody
from server.state import ServerState
from server.translate import ModelTools, Translated
from server.usage import UsageCount

log = logging.getLogger(__name__)

BodyT = TypeVar("BodyT", bound=SamplingBody)

IGNORED_HEADER = "x-estuary-ignored-params"


async def generate(
    http: Request,
    state: ServerState,
    read: ReadBody[BodyT],
    *,
    id_prefix: str,
    translate: Callable[[BodyT, ModelTools, str, float], Translated],
    make_reply: Callable[[BodyT, Translated, ReplyFacts], Reply],
) -> Response:
    """The response to a body; errors before the first byte are raised."""
    body = read.value
    model = state.check_model(body.model)
    _check_admission(state)
    now_s = time.monotonic()
    public_id = f"{id_prefix}-{uuid.uuid4().hex}"
    translated = await run_in_threadpool(translate, body, state.tools, public_id, now_s)
    state.metrics.count_ignored(read.ignored)
    state.metrics.count_choices(translated.n)
    facts = ReplyFacts(
        id=public_id,
        created=int(time.time()),
        model=model,
        system_fingerprint=state.system_fingerprint,
    )
    reply = make_reply(body, translated, facts)
    answers = _submit(state, translated)
    count = UsageCount(
        [len(prompt.token_ids) for prompt in translated.prompts],
        per_prompt=translated.per_prompt,
        is_scoring=translated.is_scoring,
    )
    exchange = _Exchange(http, state, answers, count, reply=reply, translated=translated)
    headers = {IGNORED_HEADER: ", ".join(map(_header_safe, read.ignored))} if read.ignored else {}
    if body.stream:
        return exchange.stream(body, headers)
    return await exchange.whole(headers)


def _check_admission(state: ServerState) -> None:
    try:
        state.check_admission()
    except (ApiError, Overloaded, EngineStopped) as error:
        state.metrics.count_rejection(_reason(error))
        raise


def _submit(state: ServerState, translated: Translated) -> Answers:
    try:
        return Answers(
            state.engine,
            state.tokenizer,
            translated.requests,
            rules=translated.rules,
            metrics=state.metrics,
        )
    except (Overloaded, EngineStopped) as error:
        state.metrics.count_rejection(_reason(error))
        raise


def _reason(error: Exception) -> str:
    if isinstance(error, Overloaded):
        return "server_overloaded"
    return error.answer.code if isinstance(error, ApiError) else "engine_dead"


def _header_safe(name: str) -> str:
    """A field's name as a header can carry it: what is not plain ASCII becomes a question mark."""
    return "".join(letter if "!" <= letter <= "~" and letter != "," else "?" for letter in name)[
        :64
    ]


class _Exchange:
    """One body between its submission and the end of its response."""

    def __init__(
        self,
        http: Request,
        state: ServerState,
        answers: Answers,
        count: UsageCount,
        *,
        reply: Reply,
        translated: Translated,
    ) -> None:
        self._http = http
        self._state = state
        self._answers = answers
        self._count = count
        self._reply = reply
        self._num_choices = len(translated.requests)

    async def whole(self, headers: dict[str, str]) -> Response:
        try:
            answers = await unless_disconnected(
                self._http.receive, self._answers.whole(self._num_choices)
            )
            for index, answer in enumerate(answers):
                self._count.add_answer(index, num_tokens=answer.num_tokens, stats=answer.stats)
            content = chunk_json(self._reply.whole(answers, self._count.usage()))
        finally:
            self._close()
        return Response(content, media_type="application/json", headers=headers)

    def stream(self, body: SamplingBody, headers: dict[str, str]) -> EventStream:
        options = body.stream_options
        rules = StreamRules(
            keep_alive_s=self._state.settings.sse_keep_alive_interval,
            include_usage=options is not None and bool(options.include_usage),
            usage_in_every_chunk=options is not None and bool(options.continuous_usage_stats),
        )
        events = write_events(
            self._answers, self._reply, self._count, num_choices=self._num_choices, rules=rules
        )
        return EventStream(
            events,
            close=self._close,
            write_timeout_s=self._state.settings.write_timeout,
            headers=headers,
        )

    def _close(self) -> None:
        self._answers.close()
        usage = self._count.usage()
        self._http.state.log.update(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.prompt_tokens_details.cached_tokens,
            answer_tokens=usage.completion_tokens,
            forward_passes=usage.decoding.forward_passes,
            finish=",".join(sorted({str(finish) for finish in self._answers.finishes})) or "abort",
            first_token_ms=self._answers.first_token_ms,
        )
