"""Calls that are written as code, `<function=NAME><parameter=NAME>VALUE</parameter></function>`.

Values stand there as bare text; which of them are JSON, the function's schema tells.
"""

import json
from collections.abc import Mapping

from pydantic import JsonValue

_NOT_TEXT = frozenset({"integer", "number", "boolean", "object", "array", "null"})

Schemas = Mapping[str, Mapping[str, JsonValue]]


def read_coded(text: str, schemas: Schemas) -> list[tuple[str, str]] | None:
    """(name, arguments as JSON) of each call; None when the text is anything but calls."""
    calls: list[tuple[str, str]] = []
    rest = text.strip()
    while rest.startswith("<function="):
        head, end, rest = rest.removeprefix("<function=").partition("</function>")
        name, mark, body = head.partition(">")
        arguments = _arguments(body, schemas.get(name.strip(), {}))
        if not end or not mark or not name.strip() or arguments is None:
            return None
        calls.append((name.strip(), json.dumps(arguments, ensure_ascii=False)))
        rest = rest.strip()
    return None if rest or not calls else calls


def _arguments(body: str, schema: Mapping[str, JsonValue]) -> dict[str, JsonValue] | None:
    arguments: dict[str, JsonValue] = {}
    rest = body.strip()
    while rest.startswith("<parameter="):
        head, end, rest = rest.removeprefix("<parameter=").partition("</parameter>")
        name, mark, value = head.partition(">")
        if not end or not mark or not name.strip():
            return None
        # The breaks before and after a value belong to the way of writing.
        value = value.removeprefix("\n").removesuffix("\n")
        arguments[name.strip()] = _value(value, schema, name.strip())
        rest = rest.strip()
    return None if rest else arguments


def _value(text: str, schema: Mapping[str, JsonValue], name: str) -> JsonValue:
    properties = schema.get("properties")
    described = properties.get(name) if isinstance(properties, dict) else None
    kind = described.get("type") if isinstance(described, dict) else None
    kinds = {one for one in kind if isinstance(one, str)} if isinstance(kind, list) else {kind}
    if not kinds & _NOT_TEXT:
        return text
    try:
        value: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        return text
    # A text that may also be a number stays the text that it is.
    return text if "string" in kinds and value is not None else value
