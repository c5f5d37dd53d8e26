"""docs/reference.md, written from the server's OpenAPI document: no field is copied by hand.

Run: python -m tests.api_reference
"""

from pathlib import Path

from server.app import create_app
from server.settings import load_settings
from tests.server.scripted_engine import ScriptedEngine, model_text

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
_HEAD = """# API reference

Written from the server's OpenAPI document (`/openapi.json`) by `python -m tests.api_reference`.
What the fields do and how they play together is in [api.md](api.md).
"""
_LIMITS = (
    ("minimum", "from {}"),
    ("exclusiveMinimum", "above {}"),
    ("maximum", "to {}"),
    ("exclusiveMaximum", "below {}"),
    ("minLength", "at least {} characters"),
    ("maxLength", "at most {} characters"),
    ("minItems", "at least {}"),
    ("maxItems", "at most {}"),
    ("minProperties", "at least {}"),
    ("maxProperties", "at most {}"),
    ("pattern", "matches `{}`"),
)


def rendered() -> str:
    """The page as the code has it."""
    app = create_app(ScriptedEngine(), model_text(), load_settings({}))
    document = app.openapi()
    schemas = document["components"]["schemas"]
    parts = [_HEAD, "## Routes\n"]
    for path, methods in sorted(document["paths"].items()):
        parts += [_route(path, method, about) for method, about in methods.items()]
    parts.append("## Objects\n")
    parts += [_object(name, schemas[name]) for name in sorted(schemas)]
    return "\n".join(parts)


def _route(path, method, about):
    lines = [f"### `{method.upper()} {path}`\n", _sentence(about.get("description", ""))]
    body = about.get("requestBody")
    if body:
        lines.append(f"Takes {_type(body['content']['application/json']['schema'])}.")
    content = about["responses"].get("200", {}).get("content", {})
    gives = [
        "server-sent events" if kind == "text/event-stream" else _type(shape.get("schema", {}))
        for kind, shape in content.items()
    ]
    if gives:
        lines.append(f"Gives {' or '.join(dict.fromkeys(gives))}.")
    return "\n".join(lines) + "\n"


def _object(name, schema):
    lines = [f"### {name}\n", _sentence(schema.get("description", ""))]
    if "enum" in schema:
        lines.append(f"One of {_values(schema['enum'])}.")
    fields = schema.get("properties", {})
    if fields:
        required = set(schema.get("required", ()))
        lines += ["", "| field | type | |", "| --- | --- | --- |"]
        lines += [_field(field, about, field in required) for field, about in fields.items()]
    return "\n".join(lines) + "\n"


def _field(name, schema, is_required):
    notes = ["required"] if is_required else []
    notes += _limits(schema)
    if schema.get("default") is not None:
        notes.append(f"default `{schema['default']}`")
    if "description" in schema:
        notes.append(_sentence(schema["description"]))
    return f"| `{name}` | {_cell(_type(schema))} | {_cell('; '.join(notes))} |"


def _limits(schema):
    own = [text.format(schema[key]) for key, text in _LIMITS if key in schema]
    choices = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    return own + (_limits(choices[0]) if len(choices) == 1 else [])


def _type(schema):
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return _values([schema["const"]])
    if "enum" in schema:
        return _values(schema["enum"])
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return " or ".join(dict.fromkeys(_type(each) for each in choices if _is_shown(each)))
    if schema.get("type") == "array":
        items = schema.get("items") or {}
        return f"list of {_type(items)}" if items else "list"
    return str(schema.get("type", "anything"))


def _is_shown(schema):
    return schema.get("type") != "null"


def _values(values):
    return " or ".join(f"`{value}`" for value in values)


def _sentence(text):
    return " ".join(text.split())


def _cell(text):
    return text.replace("|", "\\|")


def main() -> None:
    PAGE.write_text(rendered())


if __name__ == "__main__":
    main()
