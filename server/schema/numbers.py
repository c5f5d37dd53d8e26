"""Numbers of a body as the engine will see them: rounded to float32 before their range is checked.

A value such as 1e-46 is above 0 in a body and 0 in the engine's float32, where a range that was
checked earlier would no longer hold.
"""

import math
import struct
from typing import Annotated

from pydantic import BeforeValidator

# Below this a temperature divides logits beyond float32; the likeliest token is all it can draw.
LEAST_TEMPERATURE = 1e-5


def as_float32(value: object) -> object:
    """The float32 nearest to a number, beyond float32 an infinity, which bodies may not have.

    Anything else stays as it is.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except (OverflowError, struct.error):
        # The latter of integers that no float can hold.
        return math.inf if value > 0 else -math.inf


def as_temperature(value: object) -> object:
    """The same; one so low that only the likeliest token can be drawn is 0."""
    rounded = as_float32(value)
    is_low = isinstance(rounded, float) and 0 < rounded < LEAST_TEMPERATURE
    return 0.0 if is_low else rounded


Float32 = Annotated[float, BeforeValidator(as_float32)]
Temperature = Annotated[float, BeforeValidator(as_temperature)]
