"""`response_format` and its kin as one grammar, checked before the engine sees it.

Checking compiles the grammar without a tokenizer; it is plain computation that may run in a
thread, and llguidance bounds its own work.
"""

import json

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark
from pydantic import JsonValue

from sampler import GrammarKind, GrammarSpec, ModelInfo
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

_ANY_OBJECT = GrammarSpec(GrammarKind.JSON_SCHEMA, '{"type":"object"}')


def grammar_of(body: SamplingBody, info: ModelInfo) -> GrammarSpec | None:
    """The grammar that a body asks for; raises ApiError for one that cannot be honoured."""
    from_format = _of_response_format(body)
    from_outputs = None
    if body.structured_outputs is not None:
        from_outputs = _of_structured_outputs(body.structured_outputs)
    if from_format is not None and from_outputs is not None:
        raise invalid(
            "structured_outputs and response_format cannot both be given",
            param="structured_outputs",
        )
    found = from_format or from_outputs
    if found is None:
        return None
    spec, param = found
    check_grammar(spec, info, param=param)
    return spec


def check_grammar(spec: GrammarSpec, info: ModelInfo, *, param: str) -> None:
    """Raise ApiError when the model cannot be held to the grammar, or it does not compile."""
    if not info.can_constrain:
        raise unsupported(param, "answers cannot be held to a format")
    complaint = LLMatcher.validate_grammar(_source(spec))
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


def _of_structured_outputs(outputs: StructuredOutputs) -> tuple[GrammarSpec, str]:
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
    param = f"structured_outputs.{given[0].rstrip('_')}"
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


def _source(spec: GrammarSpec) -> str:
    if spec.kind is GrammarKind.JSON_SCHEMA:
        return LLMatcher.grammar_from_json_schema(spec.text)
    if spec.kind is GrammarKind.REGEX:
        return LLMatcher.grammar_from_regex(spec.text)
    return LLMatcher.grammar_from_lark(spec.text)
