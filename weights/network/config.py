"""`NetworkConfig`: the sizes and switches of a network, and nothing about how it decodes."""

from dataclasses import dataclass
from enum import StrEnum

from weights.network.latent_config import LatentConfig


class Block(StrEnum):
    """What a layer is made of.

    GATED: RMSNorm and a SwiGLU feed-forward, dense or of experts (the Llama line)
    GELU:  LayerNorm and a two-matrix feed-forward with tanh GELU (GPT-2, and the diffusion
           transformers once their adaptive norms are folded)
    """

    GATED = "gated"
    GELU = "gelu"


class RouterScore(StrEnum):
    """How router logits become expert weights."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Every rotary frequency divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3's rule: long waves divided by `factor`, short ones kept, a ramp between."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_positions: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN; `attention_factor` multiplies cos and sin. From: Peng et al. 2023, arXiv 2309.00071."""

    factor: float
    original_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    is_ramp_rounded: bool = True


@dataclass(frozen=True, slots=True)
class FrequencyFactors:
    """Each rotary frequency divided by its own number; as many as there are frequencies."""

    factors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class QueryScale:
    """Queries grow with position: 1 + beta * ln(1 + floor(position / original_positions))."""

    beta: float
    original_positions: int


@dataclass(frozen=True, slots=True)
class RotaryConfig:
    """Rotary position embedding of the first `rotary_dim` entries of each head."""

    theta: float
    rotary_dim: int
    scaling: LinearScaling | Llama3Scaling | YarnScaling | FrequencyFactors | None = None
    query_scale: QueryScale | None = None


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """A mixture of experts.

    num_groups, kept_groups: experts lie in equal groups, and only the best groups may be chosen
    has_selection_bias:      a bias that takes part in choosing experts, not in weighing them
    is_renormalised:         the chosen weights are made to sum to 1 before `weight_scale`
    shared_size:             width of the expert every token takes, 0 for none
    first_dense_layers:      layers before the first one with experts
    """

    num_experts: int
    experts_per_token: int
    expert_size: int
    score: RouterScore = RouterScore.SOFTMAX
    num_groups: int = 1
    kept_groups: int = 1
    has_selection_bias: bool = False
    is_renormalised: bool = True
    weight_scale: float = 1.0
    shared_size: int = 0
    first_dense_layers: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError when the sizes contradict each other."""
        if self.num_groups < 1 or self.num_experts % self.num_groups:
            raise ValueError(
                f"{self.num_experts} experts cannot be split into {self.num_groups} groups"
            )
        reachable = self.num_experts // self.num_groups * self.kept_groups
        if not 1 <= self.kept_groups <= self.num_groups:
            raise ValueError(f"{self.kept_groups} of {self.num_groups} groups cannot be kept")
        if not 1 <= self.experts_per_token <= reachable:
            raise ValueError(
                f"{self.experts_per_token} experts a token are wanted, but {reachable} can be had"
            )


@dataclass(frozen=True, slots=True)
class DraftAdapter:
    """Low-rank weights added to every attention output, for drafted rows only."""

    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Sizes and switches of a network.

    feed_forward_size: width of the dense feed-forward
    max_positions:     positions the network was made for
    rotary:            None when positions are a learned table
    learned_positions: a learned table of positions beside the rotary embedding
    qkv_bias, output_bias, feed_forward_bias, norm_bias, head_bias: which parts have a bias
    qk_norm:           an RMSNorm of each query and key head before the rotary embedding
    tie_head:          the output head is the token table
    experts:           None for a dense feed-forward in every layer
    latent:            rows may hold latents instead of tokens (Evo), or None
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    feed_forward_size: int
    max_positions: int
    norm_eps: float
    block: Block = Block.GATED
    rotary: RotaryConfig | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    feed_forward_bias: bool = False
    norm_bias: bool = False
    qk_norm: bool = False
    tie_head: bool = False
    head_bias: bool = False
    experts: ExpertsConfig | None = None
    draft_adapter: DraftAdapter | None = None
    latent: LatentConfig | None = None
    learned_positions: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError when a size is below 1 or the sizes contradict each other."""
        sizes = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "feed_forward_size": self.feed_forward_size,
            "max_positions": self.max_positions,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} query heads cannot share {self.num_kv_heads} key heads evenly"
            )
        if self.rotary is not None:
            _check_rotary_dim(self.rotary.rotary_dim, self.head_dim)

    @property
    def qkv_size(self) -> int:
        """Width of queries, keys and values side by side."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def attended_size(self) -> int:
        """Width of all heads' attention outputs side by side."""
        return self.num_heads * self.head_dim

    def has_experts(self, layer: int) -> bool:
        """Whether the feed-forward of a layer is a mixture of experts."""
        return self.experts is not None and layer >= self.experts.first_dense_layers


def _check_rotary_dim(rotary_dim: int, head_dim: int) -> None:
    if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
        raise ValueError(f"rotary_dim must be even and within 2..{head_dim}, got {rotary_dim}")
