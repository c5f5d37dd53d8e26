"""DiffusionGemma and plain Gemma 4: names of their tensors, and how a canvas is decoded.

Neither is in the table of families yet: the engine has one page table and one head width for all
layers, and these have two kinds.
"""

from dataclasses import dataclass

from weights.config_fields import ConfigFields
from weights.errors import CheckpointError
from weights.gemma_config import GemmaConfig, parse_diffusion_gemma, parse_gemma4
from weights.network.tensor_reader import TensorNames

_LAYER = "layers.{layer}."
_TEXT_TABLE = {
    "embedding": "embed_tokens.weight",
    "final_norm.weight": "norm.weight",
    "attention_norm.weight": _LAYER + "input_layernorm.weight",
    "attended_norm.weight": _LAYER + "post_attention_layernorm.weight",
    "feed_forward_norm.weight": _LAYER + "pre_feedforward_layernorm.weight",
    "fed_norm.weight": _LAYER + "post_feedforward_layernorm.weight",
    "dense_norm.weight": _LAYER + "post_feedforward_layernorm_1.weight",
    "expert_input_norm.weight": _LAYER + "pre_feedforward_layernorm_2.weight",
    "expert_output_norm.weight": _LAYER + "post_feedforward_layernorm_2.weight",
    "q.weight": _LAYER + "self_attn.q_proj.weight",
    "k.weight": _LAYER + "self_attn.k_proj.weight",
    "v.weight": _LAYER + "self_attn.v_proj.weight",
    "output.weight": _LAYER + "self_attn.o_proj.weight",
    "q_norm.weight": _LAYER + "self_attn.q_norm.weight",
    "k_norm.weight": _LAYER + "self_attn.k_norm.weight",
    "gate.weight": _LAYER + "mlp.gate_proj.weight",
    "up.weight": _LAYER + "mlp.up_proj.weight",
    "down.weight": _LAYER + "mlp.down_proj.weight",
    "router.weight": _LAYER + "router.proj.weight",
    "router.scale": _LAYER + "router.scale",
    "router.expert_scale": _LAYER + "router.per_expert_scale",
    "experts.gate_up.weight": _LAYER + "experts.gate_up_proj",
    "experts.down.weight": _LAYER + "experts.down_proj",
    "settled_scalar": _LAYER + "layer_scalar",
}
_DIFFUSION_NAMES = TensorNames(
    {part: f"model.decoder.{name}" for part, name in _TEXT_TABLE.items()}
    | {
        "canvas_scalar": "model.decoder.layers.{layer}.layer_scalar",
        "settled_scalar": "model.encoder.language_model.layers.{layer}.layer_scalar",
        "conditioning.norm.weight": "model.decoder.self_conditioning.pre_norm.weight",
        "conditioning.gate.weight": "model.decoder.self_conditioning.gate_proj.weight",
        "conditioning.up.weight": "model.decoder.self_conditioning.up_proj.weight",
        "conditioning.down.weight": "model.decoder.self_conditioning.down_proj.weight",
    },
    ignored=(
        r"model\.encoder\.(vision_tower|embed_vision)\..*",
        # Copies of the decoder's, but for the scalars.
        r"model\.encoder\.language_model\.(?!layers\.\d+\.layer_scalar).*",
        r"lm_head\.weight",
    ),
)
_GEMMA4_NAMES = TensorNames(
    _TEXT_TABLE,
    prefixes=("model.language_model.", "model."),
    ignored=(r"(vision_tower|embed_vision|audio_tower|embed_audio)\..*", r"lm_head\.weight"),
)


@dataclass(frozen=True, slots=True)
class CanvasSchedule:
    """How a canvas of uniform noise becomes text.

    Every step draws all rows at its temperature, accepts the surest while the entropies of those
    before them sum to at most the bound, and puts fresh uniform tokens into all others. The
    canvas ends when its most likely tokens stood still for `stable_steps` and their mean entropy is
    below `mean_entropy`, or its steps are spent; its text is the most likely token of each row.

    t_min, t_max:  temperature with s steps left of N: t_min + (t_max - t_min) * s / N
    entropy_bound: nats, of the tempered distributions, as is mean_entropy
    From: transformers 5.23, generation_diffusion_gemma.py.
    """

    canvas_length: int
    max_steps: int = 48
    t_min: float = 0.4
    t_max: float = 0.8
    entropy_bound: float = 0.1
    stable_steps: int = 1
    mean_entropy: float = 0.005

    def temperature(self, steps_left: int) -> float:
        """Temperature of a step, when so many are left with it."""
        return self.t_min + (self.t_max - self.t_min) * steps_left / self.max_steps


def read_canvas_schedule(config: GemmaConfig, generation: ConfigFields | None) -> CanvasSchedule:
    """Read what generation_config.json says of decoding.

    Raises CheckpointError when the network has no canvas or a number cannot be.
    """
    if config.canvas_length is None:
        raise CheckpointError("this checkpoint has no canvas")
    schedule = CanvasSchedule(config.canvas_length)
    if generation is None:
        return schedule
    bound = generation.section("sampler_config") or generation
    read = CanvasSchedule(
        config.canvas_length,
        max_steps=generation.integer("max_denoising_steps", schedule.max_steps),
        t_min=generation.number("t_min", schedule.t_min),
        t_max=generation.number("t_max", schedule.t_max),
        entropy_bound=bound.number("entropy_bound", schedule.entropy_bound),
        stable_steps=generation.integer("stability_threshold", schedule.stable_steps),
        mean_entropy=generation.number("confidence_threshold", schedule.mean_entropy),
    )
    if read.max_steps < 1 or not 0 <= read.t_min < read.t_max or read.stable_steps < 0:
        raise CheckpointError(
            f"{generation.where}: max_denoising_steps must be at least 1, t_min in [0, t_max) and "
            "stability_threshold at least 0"
        )
    return read


def parse_gemma(config: ConfigFields) -> tuple[GemmaConfig, TensorNames]:
    """The network of a DiffusionGemma or Gemma-4 config, and the names of its tensors.

    Raises CheckpointError for another kind.
    """
    architectures = config.texts("architectures")
    if "DiffusionGemmaForBlockDiffusion" in architectures:
        return parse_diffusion_gemma(config), _DIFFUSION_NAMES
    if {"Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"} & set(architectures):
        return parse_gemma4(config), _GEMMA4_NAMES
    raise config.refuse("architectures", "which is no Gemma 4 and no DiffusionGemma")
