"""What `estuary train` can make; one table."""

from weights.training.adapter_recipe import CANVAS_ADAPTER
from weights.training.eso_lm import EsoLmScale
from weights.training.evo import EvoScale
from weights.training.from_scratch import FromScratch
from weights.training.loop import Schedule
from weights.training.recipe import Recipe
from weights.training.task_recipe import EVO_TASKS

_GPU_LIMITS = "The gpu scale of this recipe has not been run or measured."

EVO = FromScratch(
    name="evo",
    summary="Train a small Evo (our reading) from scratch on plain text.",
    title="Evo (our reading), example checkpoint",
    about=(
        "A small model whose tokens can be decoded one at a time or from a canvas of latents, "
        "each with a progress t of its own. It follows our reading of Evo (arXiv 2603.06617), of "
        "which only the abstract is public, and is compatible with nothing but this project. The "
        "calibration in `config.json` is the mean entropy / log V of a canvas by t on held-out "
        "text: 0 at t = 0, where a row holds its token, and made to rise by pooling neighbours "
        "that fall (isotonic regression). Both the values as measured and the calibration are "
        "below."
    ),
    limits=(
        "It shows how the family decodes and is of no use for anything else: about a million "
        "parameters, less than an hour of one CPU core, plain English prose of a few sources, no "
        "instructions. One token at a time it writes sentences that soon lose their thread; from a "
        "wide canvas it writes words that hardly belong together, as the bounds by width above "
        f"say. {_GPU_LIMITS}"
    ),
    scales={
        "cpu": EvoScale(
            vocab_size=2048,
            hidden_size=128,
            num_layers=4,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            feed_forward_size=352,
            latent_size=32,
            schedule=Schedule(num_steps=4500, batch_size=8, length=256, learning_rate=2e-3),
        ),
        "gpu": EvoScale(
            vocab_size=8192,
            hidden_size=512,
            num_layers=8,
            num_heads=8,
            num_kv_heads=4,
            head_dim=64,
            feed_forward_size=1408,
            latent_size=128,
            schedule=Schedule(
                num_steps=20_000,
                batch_size=128,
                length=512,
                learning_rate=1e-3,
                warmup_steps=500,
                average_decay=0.999,
            ),
        ),
    },
)

ESO_LM = FromScratch(
    name="eso-lm",
    summary="Train a small Eso-LM (variant B) from scratch on plain text.",
    title="Eso-LM, example checkpoint",
    about=(
        "A small Eso-LM, variant B (arXiv 2506.01928): causal over the order in which tokens are "
        "decoded, in any order, several at a time or one by one. Trained by its authors' hybrid "
        "loss with alpha_0 = 0.25, without adaptive norms (their condition is a constant)."
    ),
    limits=(
        "It shows how the family decodes and is of no use for anything else: about a million "
        "parameters, less than an hour of one CPU core, plain English prose of a few sources, no "
        f"instructions. {_GPU_LIMITS}"
    ),
    scales={
        "cpu": EsoLmScale(
            vocab_size=2048,
            hidden_size=128,
            num_layers=4,
            num_heads=4,
            schedule=Schedule(num_steps=4500, batch_size=8, length=256, learning_rate=2e-3),
        ),
        "gpu": EsoLmScale(
            vocab_size=8192,
            hidden_size=512,
            num_layers=8,
            num_heads=8,
            schedule=Schedule(
                num_steps=20_000,
                batch_size=256,
                length=512,
                learning_rate=1e-3,
                warmup_steps=500,
                average_decay=0.999,
            ),
        ),
    },
)

RECIPES: tuple[Recipe, ...] = (EVO.recipe(), ESO_LM.recipe(), CANVAS_ADAPTER, EVO_TASKS)
