"""Bounds that every client meets, whatever the settings say.

Each list, string and number of a body has a bound before work starts on it.
"""

MAX_PROMPTS = 1024
MAX_CHOICES_PER_PROMPT = 128
# Prompts times choices: each is a request of its own to the engine.
MAX_CHOICES = 1024
MAX_MESSAGES = 4096
MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 256
MAX_BAD_WORDS = 256
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20
MAX_TOOLS = 128
MAX_TOKENS = 2**31 - 1
MAX_SEED = 2**63 - 1
MAX_GRAMMAR_CHARACTERS = 64 * 1024
MAX_REGEX_CHARACTERS = 4 * 1024
MAX_SCHEMA_DEPTH = 32
# What a validation error reports at most, so that a small body cannot make a large answer.
MAX_REPORTED_ERRORS = 10
MAX_CACHE_SALT_CHARACTERS = 256
MIN_TIMEOUT_S, MAX_TIMEOUT_S = 0.001, 86_400.0
MAX_REQUEST_ID_CHARACTERS = 128
MAX_HEADER_BYTES = 64 * 1024
MAX_HEADERS = 100
