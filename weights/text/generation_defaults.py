"""`GenerationDefaults`: what a checkpoint says about how to sample from it and when to stop."""

from dataclasses import dataclass

from weights.config_fields import ConfigFields


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """A checkpoint's own sampling settings; None where it is silent.

    eos_token_ids: tokens that end an answer, ascending
    """

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def read_generation_defaults(
    config: ConfigFields, generation: ConfigFields | None, *, tokenizer_eos_id: int | None
) -> GenerationDefaults:
    """Combine config.json, generation_config.json and the tokenizer's end of text.

    The generation config's end-of-text ids replace those of config.json; the tokenizer's own is
    always one of them (chat checkpoints often name the turn's end only there).
    """
    sources = [source for source in (generation, config) if source is not None]
    eos: set[int] = set()
    for source in sources:
        eos |= set(source.token_ids("eos_token_id"))
        if eos:
            break
    if tokenizer_eos_id is not None:
        eos.add(tokenizer_eos_id)
    sampling = generation or ConfigFields({}, "generation_config.json")
    return GenerationDefaults(
        eos_token_ids=tuple(sorted(eos)),
        bos_token_id=_first_id(sources, "bos_token_id"),
        pad_token_id=_first_id(sources, "pad_token_id"),
        temperature=_number(sampling, "temperature"),
        top_k=sampling.integer("top_k") if sampling.has("top_k") else None,
        top_p=_number(sampling, "top_p"),
        min_p=_number(sampling, "min_p"),
        repetition_penalty=_number(sampling, "repetition_penalty"),
    )


def _first_id(sources: list[ConfigFields], name: str) -> int | None:
    return next((source.token_ids(name)[0] for source in sources if source.token_ids(name)), None)


def _number(fields: ConfigFields, name: str) -> float | None:
    return fields.number(name) if fields.has(name) else None
