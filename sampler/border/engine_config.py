"""`EngineConfig`: everything the engine process is told at its start."""

from dataclasses import dataclass

MIN_PAGE_SIZE, MAX_PAGE_SIZE = 1, 256


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Checked when made; raises ValueError naming the field, the limit and the value.

    model:          a folder or a GGUF file
    dtype:          float32, bfloat16, float16, or None: bfloat16 on a GPU, float32 on a CPU
    quantization:   int8 or None
    device:         cpu, cuda, or None: a GPU when there is one
    page_size:      cache entries in a page
    max_sequences:  sequences that run at the same time
    max_rows:       row budget of a step
    max_context:    prompt and answer together, in tokens, or None for the model's own limit
    mask_token_id, block_length: of a diffusion checkpoint that does not say them, or None
    canvas_adapter: folder of a canvas adapter made for the model, or None
    cache_bytes:    memory of the cache, or None: 90 % of what is free on a GPU, 2 GiB on a CPU
    max_waiting:    requests that may wait beside those that run
    prefix_caching: whether settled pages are kept for later prompts
    cuda_graphs:    whether small steps are captured at the start and replayed, on a GPU
    num_threads:    CPU threads of the network, or None for one a core
    seed:           seeds requests that bring none
    """

    model: str
    dtype: str | None = None
    quantization: str | None = None
    device: str | None = None
    page_size: int = 16
    max_sequences: int = 64
    max_rows: int = 2048
    max_context: int | None = None
    mask_token_id: int | None = None
    block_length: int | None = None
    canvas_adapter: str | None = None
    cache_bytes: int | None = None
    max_waiting: int = 1024
    prefix_caching: bool = True
    cuda_graphs: bool = True
    num_threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("dtype", self.dtype, ("float32", "bfloat16", "float16"))
        _check_choice("quantization", self.quantization, ("int8",))
        _check_range("page_size", self.page_size, MIN_PAGE_SIZE, MAX_PAGE_SIZE)
        _check_range("max_sequences", self.max_sequences, 1, 4096)
        _check_range("max_rows", self.max_rows, 1, 1 << 20)
        _check_range("max_waiting", self.max_waiting, 0, 1 << 20)
        for name, value in (
            ("max_context", self.max_context),
            ("cache_bytes", self.cache_bytes),
            ("num_threads", self.num_threads),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.max_rows < self.max_sequences:
            raise ValueError(
                f"max_rows must be at least max_sequences ({self.max_sequences}), "
                f"got {self.max_rows}"
            )


def _check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}")
