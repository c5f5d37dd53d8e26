"""The engine in a process of its own: `python -m sampler.engine_process --fd N`.

N is an open socket to the API process. The first message on it is the configuration; the
process ends when the socket closes, when it is told to, or when the loop fails.
"""

import argparse
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import torch

from kernels import record_graph
from sampler.border.engine_config import EngineConfig
from sampler.border.messages import (
    FRAME_HEADER_BYTES,
    Cancel,
    Failed,
    FromEngine,
    ModelInfo,
    Ready,
    Shutdown,
    Start,
    Submit,
    ToEngine,
    decode_to_engine,
    encode_frame,
)
from sampler.border.request import DecodingMode, DecodingParams, Request, SamplingParams
from sampler.engine import Engine, EngineLimits, cache_for, model_info
from sampler.seats.constraint import Grammars
from sampler.spans.latent_spans import LatentSpans
from sampler.step.graph_runner import GraphRunner, graph_runner
from sampler.step.latent_store import LatentStore
from sampler.step.runner import Runner
from sampler.step.score_spec import Vocabulary
from weights import CheckpointError, Quantize, load_model
from weights.families import RuleOverrides

log = logging.getLogger(__name__)

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_READ_BYTES = 1 << 20
_WARM_UP_S = 1.5
_WARM_UP_TOKENS = 4
# (requests at a time, prompt tokens of each); the usual ones first.
_WARM_UP_SHAPES = (
    (1, 32), (1, 1), (4, 4), (1, 128), (16, 4), (2, 16), (8, 8), (1, 512), (64, 2), (32, 8),
    (1, 64), (16, 16), (128, 2), (1, 256), (64, 8), (256, 1), (1, 1024), (4, 64), (8, 32),
    (1, 2048),
)  # fmt: skip
# The same, and the width of their drafts, of models whose drafting rows hold latents.
_LATENT_SHAPES = ((1, 32, 3), (1, 1, 2), (1, 8, 5), (4, 4, 3), (16, 4, 2), (1, 16, 8))
_LATENT_TOKENS = 12
# How often an idle engine tells the API process that it is alive.
_HEARTBEAT_S = 1.0


class ChannelClosed(Exception):
    """The API process is gone."""


class EngineChannel:
    """The engine's end of the socket: whole messages in, whole messages out."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)

    def send(self, message: FromEngine) -> None:
        """Write a message; raises ChannelClosed when nobody reads any more."""
        try:
            self._connection.sendall(encode_frame(message))
        except OSError as error:
            raise ChannelClosed from error

    def receive(self, *, timeout_s: float) -> list[ToEngine]:
        """Messages that have arrived; waits up to `timeout_s` for the first.

        Raises ChannelClosed when the other end is gone.
        """
        messages = self._whole_messages()
        while not messages and self._selector.select(timeout_s):
            self._read()
            messages = self._whole_messages()
        while self._selector.select(0):
            self._read()
        return messages + self._whole_messages()

    def _read(self) -> None:
        try:
            content = self._connection.recv(_READ_BYTES)
        except OSError as error:
            raise ChannelClosed from error
        if not content:
            raise ChannelClosed
        self._buffer += content

    def _whole_messages(self) -> list[ToEngine]:
        messages: list[ToEngine] = []
        start = 0
        while len(self._buffer) - start >= FRAME_HEADER_BYTES:
            content_start = start + FRAME_HEADER_BYTES
            stop = content_start + int.from_bytes(self._buffer[start:content_start], "big")
            if len(self._buffer) < stop:
                break
            messages.append(decode_to_engine(bytes(self._buffer[content_start:stop])))
            start = stop
        del self._buffer[:start]
        return messages


def load_engine(config: EngineConfig) -> tuple[Engine, ModelInfo]:
    """Load the model of a configuration, make its cache, run a first step.

    Raises CheckpointError or ValueError with one sentence when that is not possible.
    """
    started_s = time.monotonic()
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    dtype = config.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    model = load_model(
        Path(config.model),
        dtype=_DTYPES[dtype],
        device=device,
        quantize=None if config.quantization is None else Quantize(config.quantization),
        overrides=RuleOverrides(
            mask_token_id=config.mask_token_id, block_length=config.block_length
        ),
        context_length=config.max_context,
        canvas_adapter=None if config.canvas_adapter is None else Path(config.canvas_adapter),
    )
    rule = model.family.rule
    cache = cache_for(
        model.network, config=config, context_length=model.context_length, device=device
    )
    context_length = min(model.context_length, cache.num_pages * cache.page_size)
    vocabulary = Vocabulary(
        size=model.config.vocab_size,
        eos_ids=frozenset(model.generation.eos_token_ids),
        mask_id=rule.mask_token_id,
        mask_is_hidden=rule.suppresses_mask,
    )
    latents = None
    if model.network.latent is not None:
        latents = LatentStore(model.network.latent, num_seats=config.max_sequences)
    eager = Runner(model.network, cache, latents)
    runner: Runner | GraphRunner = eager
    if device.type == "cuda" and config.cuda_graphs:
        runner = graph_runner(
            eager,
            record=record_graph(device),
            rule=rule,
            config=config,
            context_length=context_length,
            suppressed=vocabulary.hidden_ids,
        )
    engine = Engine(
        runner=runner,
        rule=rule,
        vocabulary=vocabulary,
        grammars=None
        if model.tokenizer is None
        else Grammars(
            model.tokenizer,
            vocabulary_size=vocabulary.size,
            eos_ids=model.generation.eos_token_ids,
        ),
        config=config,
        limits=EngineLimits(context_length=context_length, num_pages=cache.num_pages),
        device=device,
    )
    warm_up(engine)
    load_s = time.monotonic() - started_s
    log.info("loaded %s in %.1f s on %s", model.name, load_s, device)
    info = model_info(
        name=model.name, rule=rule, family=model.family.name, engine=engine, load_s=load_s
    )
    return engine, info


def warm_up(engine: Engine, *, clock: Callable[[], float] = time.monotonic) -> None:
    """Run short requests in step shapes of all sizes, and fit the step time to them.

    The first client then pays for nothing that is done once, and the balance knows from the
    start what a row costs here. Stops after a time; what is left is learned while serving.
    """
    started_s = clock()
    longest = min(engine.context_length - _LATENT_TOKENS, engine.config.max_rows)
    number = 0
    for count, length, decoding in _warm_up_shapes(engine):
        if length > longest or count > engine.config.max_sequences:
            continue
        tokens = _WARM_UP_TOKENS if decoding.width is None else _LATENT_TOKENS
        for _ in range(count):
            # Prompts that begin differently share no pages, so that all of their rows run.
            first = number % engine.vocabulary.size
            params = SamplingParams(
                max_tokens=tokens, ignore_eos=True, temperature=1.0, decoding=decoding
            )
            prompt = (first,) + (0,) * (length - 1)
            engine.submit(Request(id=f"warm-up-{number}", prompt=prompt, params=params))
            number += 1
        while engine.has_work:
            engine.step()
        if clock() - started_s > _WARM_UP_S:
            break
    engine.step_time.fit()
    engine.reset()


def _warm_up_shapes(engine: Engine) -> Iterator[tuple[int, int, DecodingParams]]:
    """(requests at a time, prompt tokens, decoding) of what warming up runs."""
    if isinstance(engine.rule, LatentSpans) and "speculative" in engine.family.modes:
        for count, length, width in _LATENT_SHAPES:
            decoding = DecodingParams(mode=DecodingMode.SPECULATIVE, width=width, drafts="canvas")
            yield count, length, decoding
    for count, length in _WARM_UP_SHAPES:
        yield count, length, DecodingParams()


def serve(channel: EngineChannel, engine: Engine) -> None:
    """Step while there is work, listen while there is none, until told to stop."""
    while True:
        timeout_s = 0.0 if engine.has_work else _HEARTBEAT_S
        for message in channel.receive(timeout_s=timeout_s):
            match message:
                case Submit(request=request):
                    engine.submit(request)
                case Cancel(request_id=request_id, reports=reports):
                    engine.cancel(request_id, reports=reports)
                case Shutdown():
                    return
                case Start():
                    log.warning("a second configuration was ignored")
        channel.send(engine.step())


def main() -> int:
    """Run the process; the exit status is 0 after a shutdown, 1 after a failure."""
    parser = argparse.ArgumentParser(description="Estuary's engine process; started by the server")
    parser.add_argument("--fd", type=int, required=True, help="open socket to the API process")
    parser.add_argument("--log-level", default="INFO", help="DEBUG, INFO, WARNING or ERROR")
    parser.add_argument("--log-format", default="console", choices=("console", "json"))
    arguments = parser.parse_args()
    # Ctrl-C in a terminal and a service manager's SIGTERM reach both processes; the API process
    # drains its requests and decides when this one ends: by a message or by closing the channel.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _set_up_logging(arguments.log_level, as_json=arguments.log_format == "json")
    channel = EngineChannel(socket.socket(fileno=arguments.fd))
    try:
        return _run(channel)
    except ChannelClosed:
        log.info("the API process closed the channel; stopping")
        return 0


class JsonLines(logging.Formatter):
    """One JSON object a line, with the same keys as the API process's log."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; a traceback goes into its own key."""
        content = {
            "ts": datetime.fromtimestamp(record.created, tz=UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(content).decode()


def _set_up_logging(level: str, *, as_json: bool) -> None:
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if as_json else text)
    logging.basicConfig(level=level, handlers=[handler])


def _run(channel: EngineChannel) -> int:
    start = channel.receive(timeout_s=60.0)
    if not start or not isinstance(start[0], Start):
        log.error("no configuration came within a minute")
        return 1
    try:
        engine, info = load_engine(start[0].config)
    except (CheckpointError, ValueError, OSError, RuntimeError, msgspec.DecodeError) as error:
        log.error("cannot start: %s", error)
        channel.send(Failed(error=str(error)))
        return 1
    channel.send(Ready(info=info))
    try:
        serve(channel, engine)
    except ChannelClosed:
        raise
    except Exception as error:
        log.exception("the engine loop failed")
        channel.send(Failed(error=f"{type(error).__name__} in the engine loop"))
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Skips the interpreter's teardown of a large cache, which takes seconds.
    os._exit(status)
