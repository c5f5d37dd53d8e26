"""`Scorer`: a loaded model that says how likely texts are, for use outside the server."""

from pathlib import Path

import torch

from sampler.likelihood import Likelihood, text_likelihood
from weights import CheckpointError, LoadedModel, load_model


class Scorer:
    """Scores texts with one model in float32 on this machine's CPU."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    @classmethod
    def load(cls, path: Path) -> "Scorer":
        """Load a folder or GGUF file; raises CheckpointError like `load_model`."""
        return cls(load_model(path, dtype=torch.float32, device=torch.device("cpu")))

    def score(
        self, text: str, *, num_orders: int = 1, alpha_0: float | None = None, seed: int = 0
    ) -> Likelihood:
        """Score a text; the parameters are those of `text_likelihood`.

        Raises CheckpointError when the model has no tokenizer, ValueError when the text is too
        short, too long, or the family gives no likelihood.
        """
        if self.model.tokenizer is None:
            raise CheckpointError(f"{self.model.name} has no tokenizer; score token ids instead")
        tokens = self.model.tokenizer.encode(text, add_special_tokens=False)
        return self.score_tokens(tokens, num_orders=num_orders, alpha_0=alpha_0, seed=seed)

    def score_tokens(
        self, tokens: list[int], *, num_orders: int = 1, alpha_0: float | None = None, seed: int = 0
    ) -> Likelihood:
        """The same for token ids."""
        limit = self.model.context_length
        if len(tokens) > limit:
            raise ValueError(f"a text to score may have at most {limit} tokens, got {len(tokens)}")
        return text_likelihood(
            self.model.network,
            self.model.family.rule,
            tokens,
            num_orders=num_orders,
            alpha_0=alpha_0,
            seed=seed,
        )
