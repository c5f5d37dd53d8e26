"""`Runner`: the network and the scoring of one step, and the one copy of the result to the host."""

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kernels import KVCache, RowScores, ScoreSpec, score_rows
from sampler.spans.scored import HostScores
from sampler.step.latent_scores import score_latents
from sampler.step.latent_store import LatentStore
from sampler.step.ratio_acceptance import RatioVerifier
from sampler.step.step_input import StepInput
from weights.network.interface import Network


class StepRunner(Protocol):
    """Whatever runs a step: a network, or a test that says what comes out."""

    def run(self, step: StepInput, spec: ScoreSpec) -> HostScores:
        """Store what the rows settle and score the rows that ask for it."""

    def take_back(self) -> None:
        """Undo what the last `run`, ended or failed, changed beside entries that it stored."""


class Runner:
    """Runs steps of one network over one cache."""

    def __init__(
        self, network: Network, cache: KVCache, latents: LatentStore | None = None
    ) -> None:
        """latents: the vectors of a network whose rows may hold latents."""
        self.network = network
        self.cache = cache
        self.latents = latents
        self.ratio = RatioVerifier(network)

    @torch.inference_mode()
    def run(self, step: StepInput, spec: ScoreSpec) -> HostScores:
        """Store what the rows settle and score the rows that ask for it."""
        self.begin()
        inputs = step.network
        if step.latents is not None:
            assert self.latents is not None, "only networks with latents get them"
            assert inputs.latents is not None, "latents that move have rows"
            vectors = self.latents.move(step.latents)
            inputs = replace(inputs, latents=replace(inputs.latents, vectors=vectors))
        hidden = self.network.forward(inputs, self.cache)
        if step.scored.rows.size == 0:
            return no_scores()
        if step.latents is None or self.latents is None or inputs.latents is None:
            scores = score_rows(hidden, self.network.head_weight, self.network.head_bias, spec)
        else:
            scores = score_latents(
                self.network,
                hidden,
                inputs.latents,
                spec,
                is_tempered=step.latents.is_tempered,
            )
            assert scores.expected_embedding is not None, "it was asked for"
            self.latents.keep_expected(step.latents, scores.expected_embedding)
        if step.ratio is not None:
            scores = self.ratio.apply(hidden, scores, spec, step.ratio)
        return to_host(scores)

    def begin(self) -> None:
        """A step runs from here on; the one before stays."""
        self.ratio.begin()
        if self.latents is not None:
            self.latents.begin()

    @torch.inference_mode()
    def take_back(self) -> None:
        """Undo what the last `run`, ended or failed, changed beside entries that it stored."""
        self.ratio.take_back()
        if self.latents is not None:
            self.latents.take_back()


def no_scores() -> HostScores:
    """The scores of no rows."""
    ids, numbers = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    return HostScores(ids, numbers, ids, numbers, numbers, numbers)


def to_host(scores: RowScores) -> HostScores:
    """Copy the scores in one transfer: their bytes go side by side into one buffer."""
    tensors = {
        "token": scores.token,
        "probability": scores.probability,
        "argmax": scores.argmax,
        "p1": scores.p1,
        "p2": scores.p2,
        "entropy": scores.entropy,
        "given_logprob": scores.given_logprob,
        "top_ids": scores.top_ids,
        "top_logprobs": scores.top_logprobs,
    }
    wanted = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if scores.token.device.type == "cpu":
        arrays = [tensor.numpy() for tensor in wanted.values()]
    else:
        arrays = _download(list(wanted.values()))
    return HostScores(**dict(zip(wanted, arrays, strict=True)))


def _download(tensors: list[torch.Tensor]) -> list[NDArray[np.generic]]:
    packed = torch.cat([tensor.contiguous().flatten().view(torch.uint8) for tensor in tensors])
    content = packed.cpu().numpy()
    arrays = []
    start = 0
    for tensor in tensors:
        stop = start + tensor.numel() * tensor.element_size()
        dtype = np.int64 if tensor.dtype == torch.int64 else np.float32
        arrays.append(content[start:stop].view(dtype).reshape(tuple(tensor.shape)))
        start = stop
    return arrays
