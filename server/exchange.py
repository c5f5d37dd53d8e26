"""What chat and text completions do alike: submit, then answer whole or as a stream."""

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from sampler import EngineStopped, Overloaded
from server.error_responses import ApiError
from server.read_body import ReadBody
from server.replies.event_stream import EventStream, unless_disconnected
from server.replies.reply_format import Reply, ReplyFacts, write_events
from server.replies.running_answers import Answers
from server.replies.usage import UsageCount
from server.schema.common import SamplingBody
from server.state import ServerState
from server.translate.model_text import ModelTools
from server.translate.requests import Translated
from server.watch.tracing import RequestTrace

log = logging.getLogger(__name__)

IGNORED_HEADER = "x-estuary-ignored-params"


@dataclass(frozen=True, slots=True)
class Asked:
    """What every kind of body says: the model's name, whether to stream, what was ignored.

    timeout_s: after which the client gives the answer up
    """

    id_prefix: str
    model: str | None
    is_stream: bool
    ignored: tuple[str, ...]
    timeout_s: float | None = None

    @classmethod
    def of(cls, read: ReadBody[SamplingBody], id_prefix: str) -> Self:
        """Of a body of chat or text completions."""
        body = read.value
        return cls(id_prefix, body.model, bool(body.stream), read.ignored, body.timeout)


async def generate(
    http: Request,
    state: ServerState,
    asked: Asked,
    *,
    translate: Callable[[ModelTools, str, float], Translated],
    make_reply: Callable[[Translated, ReplyFacts, UsageCount], Reply],
) -> Response:
    """The response to a body; errors before the first byte are raised."""
    model = state.check_model(asked.model)
    _check_admission(state)
    public_id = f"{asked.id_prefix}-{uuid.uuid4().hex}"
    translated = await run_in_threadpool(translate, state.tools, public_id, time.monotonic())
    state.metrics.count_ignored(asked.ignored)
    state.metrics.count_choices(translated.n)
    facts = ReplyFacts(
        id=public_id,
        created=int(time.time()),
        model=model,
        system_fingerprint=state.system_fingerprint,
    )
    count = UsageCount(
        [len(prompt.token_ids) for prompt in translated.prompts],
        per_prompt=translated.per_prompt,
        is_scoring=translated.is_scoring,
    )
    reply = make_reply(translated, facts, count)
    timeouts_s = [t for t in (asked.timeout_s, state.settings.request_timeout) if t is not None]
    answers = _submit(
        state,
        translated,
        timeout_s=min(timeouts_s, default=None),
        trace=http.state.trace,
    )
    exchange = _Exchange(http, state, answers, count, reply=reply, translated=translated)
    ignored = ", ".join(map(_header_safe, asked.ignored))
    headers = {IGNORED_HEADER: ignored} if ignored else {}
    if not asked.is_stream:
        return await exchange.whole(headers)
    return await exchange.stream(headers, waits=bool(timeouts_s))


def _check_admission(state: ServerState) -> None:
    try:
        state.check_admission()
    except (ApiError, Overloaded, EngineStopped) as error:
        state.metrics.count_rejection(_reason(error))
        raise


def _submit(
    state: ServerState, translated: Translated, *, timeout_s: float | None, trace: RequestTrace
) -> Answers:
    try:
        return Answers(
            state.engine,
            state.tokenizer,
            translated.requests,
            rules=translated.rules,
            metrics=state.metrics,
            timeout_s=timeout_s,
            trace=trace,
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
            content = self._reply.whole(answers)
        finally:
            self._close()
        return Response(content, media_type="application/json", headers=headers)

    async def stream(self, headers: dict[str, str], *, waits: bool) -> EventStream:
        """The response of a stream.

        waits: for the first token, so that an answer that comes too late still has a status
        """
        settings = self._state.settings
        if waits:
            await self._wait(settings.sse_keep_alive_interval)
        events = write_events(
            self._answers,
            self._reply,
            self._count,
            num_choices=self._num_choices,
            keep_alive_s=settings.sse_keep_alive_interval,
        )
        return EventStream(
            events,
            failure=self._reply.failure,
            close=self._close,
            write_timeout_s=settings.write_timeout,
            headers=headers,
        )

    async def _wait(self, timeout_s: float) -> None:
        try:
            await unless_disconnected(
                self._http.receive, self._answers.wait_for_first(timeout_s=timeout_s)
            )
        except BaseException:
            self._close()
            raise

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
