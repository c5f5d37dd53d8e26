"""A tiny text, tiny scales and short runs for the tests of training."""

import argparse
import random

from weights.training.eso_lm import EsoLmScale
from weights.training.evo import EvoScale
from weights.training.loop import Schedule

SCHEDULE = Schedule(
    num_steps=40,
    batch_size=4,
    length=32,
    learning_rate=1e-2,
    warmup_steps=4,
    average_decay=0.9,
    log_every=5,
    measure_every=10,
    save_every=10,
)
TINY_EVO = EvoScale(
    vocab_size=300,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    feed_forward_size=48,
    latent_size=8,
    schedule=SCHEDULE,
)
TINY_ESO_LM = EsoLmScale(
    vocab_size=300, hidden_size=32, num_layers=2, num_heads=4, schedule=SCHEDULE
)
_SUBJECTS = ("the cat", "a dog", "the old man", "my sister", "the river")
_VERBS = ("sees", "likes", "follows", "remembers")


def write_text(folder, *, num_documents=200):
    """Documents of a few simple sentences, one file."""
    drawn = random.Random(3)
    folder.mkdir()
    documents = [
        f"Story {number}: "
        + " ".join(
            f"{drawn.choice(_SUBJECTS)} {drawn.choice(_VERBS)} {drawn.choice(_SUBJECTS)}."
            for _ in range(8)
        )
        for number in range(num_documents)
    ]
    (folder / "stories.txt").write_text("\n\f\n".join(documents))
    (folder / "NOTICE").write_text("stories.txt: made up\n")
    return folder


def flags(recipe, text, out, *more):
    """The parsed flags of a run."""
    parser = argparse.ArgumentParser()
    recipe.add_flags(parser)
    return parser.parse_args(["--text", str(text), "--out", str(out), *more])
