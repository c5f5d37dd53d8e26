"""`response_format` and its kin as one grammar, checked before the engine sees it.

Checking compiles the grammar without a tokenizer; it is plain computation that may run in a
thread, and llguidance bounds its own work.
"""

import json
from collections.abc import Iterator
from functools import lru_cache

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark
from pydantic import JsonValue

from sampler import GrammarKind, GrammarSpec, ModelInfo
from sampler.seats.constraint import grammar_source
from server.error_responses import ApiError, ErrorAnswer, invalid, unsupported
from server.limits import MAX_GRAMMAR_CHARACTERS, MAX_SCHEMA_DEPTH
from server.schema.common import SamplingBody
from server.schema.grammar import (
    GrammarFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    RegexFormat,
    StructuredOutputs,
)

# Texts of at most 64 Ki characters.
_CHECKED_GRAMMARS = 256
_ANY_OBJECT = GrammarSpec(GrammarKind.JSON_SCHEMA, '{"type":"object"}')


def grammar_of(body: SamplingBody, info: ModelInfo) -> GrammarSpec | None:
    """The grammar that a body asks for; raises ApiError for one that cannot be honoured."""
    found = [*filter(None, (_of_response_format(body), *_of_guides(body)))]
    if body.structured_outputs is not None:
        found.append(_of_structured_outputs(body.structured_outputs))
    if not found:
        return None
    if len(found) > 1:
        param = found[-1][1].partition(".")[0]
        raise invalid(f"{param} cannot be combined with another format", param=param)
    ((spec, param),) = found
    check_grammar(spec, info, param=param)
    return spec


def check_grammar(spec: GrammarSpec, info: ModelInfo, *, param: str) -> None:
    """Raise ApiError when the model cannot be held to the grammar, or it does not compile."""
    if not info.can_constrain:
        raise unsupported(param, "answers cannot be held to a format")
    complaint = _complaint(spec)
    if complaint:
        raise ApiError(
            ErrorAnswer(
                422,
                "invalid_request_error",
                "unprocessable",
                f"{param} does not compile: {complaint.splitlines()[0][:500]}",
                param=param,
            )
        )


@lru_cache(maxsize=_CHECKED_GRAMMARS)
def _complaint(spec: GrammarSpec) -> str:
    """Why a grammar does not compile; empty when it does. The prompts of a body share one check."""
    complaint: str = LLMatcher.validate_grammar(grammar_source(spec))
    return complaint


def schema_grammar(schema: JsonValue, *, param: str) -> GrammarSpec:
    """A JSON schema as a grammar; raises ApiError when it is too large or too deep."""
    _check_depth(schema, param=param)
    text = json.dumps(schema, ensure_ascii=False)
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        raise invalid(
            f"{param} may have at most {MAX_GRAMMAR_CHARACTERS} characters, got {len(text)}",
            param=param,
        )
    return GrammarSpec(GrammarKind.JSON_SCHEMA, text)


def _of_response_format(body: SamplingBody) -> tuple[GrammarSpec, str] | None:
    match body.response_format:
        case JsonObjectFormat():
            return _ANY_OBJECT, "response_format"
        case JsonSchemaFormat(json_schema=named):
            param = "response_format.json_schema.schema"
            if named.schema_ is None:
                raise invalid(f"{param}: Field required", param=param)
            return schema_grammar(named.schema_, param=param), param
        case RegexFormat(regex=pattern):
            return GrammarSpec(GrammarKind.REGEX, pattern), "response_format.regex"
        case GrammarFormat(grammar=text):
            param = "response_format.grammar"
            return GrammarSpec(GrammarKind.LARK, _as_lark(text, param=param)), param
    return None


def _of_guides(body: SamplingBody) -> Iterator[tuple[GrammarSpec, str]]:
    """The older names of what `structured_outputs` says."""
    for name in ("json", "regex", "choice", "grammar"):
        param = f"guided_{name}"
        value = getattr(body, param)
        if value is not None:
            outputs = StructuredOutputs.model_validate({name: value})
            yield _of_structured_outputs(outputs, named=param)


def _of_structured_outputs(
    outputs: StructuredOutputs, *, named: str | None = None
) -> tuple[GrammarSpec, str]:
    """The grammar and the name of its field, which is `named` where it has an older name."""
    given = [
        name
        for name in ("json_", "json_object", "regex", "choice", "grammar")
        if outputs.__dict__[name] not in (None, False)
    ]
    if len(given) != 1:
        raise invalid(
            "structured_outputs needs exactly one of json, json_object, regex, choice, grammar",
            param="structured_outputs",
        )
    param = named or f"structured_outputs.{given[0].rstrip('_')}"
    if outputs.json_ is not None:
        return schema_grammar(_as_json(outputs.json_, param=param), param=param), param
    if outputs.regex is not None:
        return GrammarSpec(GrammarKind.REGEX, outputs.regex), param
    if outputs.choice is not None:
        return _choice_grammar(outputs.choice, param=param), param
    if outputs.grammar is not None:
        return GrammarSpec(GrammarKind.LARK, _as_lark(outputs.grammar, param=param)), param
    return _ANY_OBJECT, param


def _choice_grammar(choices: list[str], *, param: str) -> GrammarSpec:
    # A Lark string is written like a JSON string.
    text = "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        raise invalid(f"{param} may have at most {MAX_GRAMMAR_CHARACTERS} characters", param=param)
    return GrammarSpec(GrammarKind.LARK, text)


def _as_json(value: dict[str, JsonValue] | str, *, param: str) -> JsonValue:
    if not isinstance(value, str):
        return value
    try:
        parsed: JsonValue = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise invalid(f"{param} is not valid JSON", param=param) from error
    return parsed


def _as_lark(text: str, *, param: str) -> str:
    """A grammar in Lark; one written with ::= is translated."""
    if "::=" not in text:
        return text
    try:
        return gbnf_to_lark(text)
    except Exception as error:
        raise invalid(f"{param} is not a valid grammar: {str(error)[:200]}", param=param) from error


def _check_depth(schema: JsonValue, *, param: str) -> None:
    # A list and not recursion: the depth of what is checked is the client's choice.
    level = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [child for value in level for child in _children(value)]
        if not level:
            return
    raise invalid(f"{param} may be at most {MAX_SCHEMA_DEPTH} levels deep", param=param)


def _children(value: JsonValue) -> list[JsonValue]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
