"""How many examples a property test draws: few and the same ones in every run, many by night.

`pytest --hypothesis-profile=nightly` draws 30 times as many, new ones each time.
"""

from hypothesis import settings

QUICK_EXAMPLES = 30

settings.register_profile(
    "quick", settings.get_profile("ci"), max_examples=QUICK_EXAMPLES, deadline=None
)
settings.register_profile("nightly", max_examples=30 * QUICK_EXAMPLES, deadline=None)
settings.load_profile("quick")


def num_examples(quick):
    """`quick` examples in every run, and as many times more as the profile in force asks for."""
    return quick * settings().max_examples // QUICK_EXAMPLES
