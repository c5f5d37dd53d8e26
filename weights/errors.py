"""What can go wrong while a model is fetched, read or used; each message is one sentence."""


class CheckpointError(Exception):
    """A checkpoint that cannot be served: broken, incomplete, contradictory or of no known kind.

    tensor: the name of the tensor at fault, or None when no single one is.
    """

    def __init__(self, message: str, *, tensor: str | None = None) -> None:
        super().__init__(message)
        self.tensor = tensor


class FetchError(Exception):
    """A model could not be brought to this machine: no network, no room, or the wrong bytes."""


class TemplateError(Exception):
    """A chat template could not be read, or refused the messages it was given."""
