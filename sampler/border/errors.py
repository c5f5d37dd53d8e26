"""What can go wrong for a request, or for the engine."""


class RequestError(Exception):
    """A request that cannot be served.

    field: the dotted path of the parameter in the API's words, or None when no single one is
    at fault.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class PromptTooLong(RequestError):
    """The prompt and the answer asked for do not fit into the context."""

    def __init__(self, *, prompt_tokens: int, max_tokens: int, limit_tokens: int) -> None:
        super().__init__(
            f"the prompt has {prompt_tokens} tokens and {max_tokens} are asked for, "
            f"but prompt and answer together may have at most {limit_tokens}",
            field="prompt",
        )
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.limit_tokens = limit_tokens


class Overloaded(RequestError):
    """The queue is full; the request was not taken and may be sent again.

    retry_after_s: when a place is likely to be free.
    """

    def __init__(self, *, num_waiting: int, retry_after_s: float) -> None:
        super().__init__(f"{num_waiting} requests are waiting, which is the limit")
        self.num_waiting = num_waiting
        self.retry_after_s = retry_after_s


class EngineStopped(Exception):
    """The engine is gone; every stream it fed ends with this."""
