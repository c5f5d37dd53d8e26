"""Upper ends of the ranges of `decoding` knobs, for the API's schema and the engine alike.

margin:        a difference of two probabilities
entropy_bound: nats; far more than any step's entropies add up to
factor:        the factor rule's f
"""

MAX_MARGIN = 1.0
MAX_ENTROPY_BOUND = 100.0
MAX_FACTOR = 1000.0
