"""Command-line flags made from the fields of `Settings`, so that there is one list of them."""

import argparse
from pathlib import Path
from types import UnionType
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from server.settings import ACCESS, API, ENGINE, ENVIRONMENT_PREFIX, HTTP, MODEL, PROCESS, Settings

GROUPS = {
    MODEL: "model",
    ENGINE: "engine",
    HTTP: "HTTP",
    ACCESS: "access",
    API: "API",
    PROCESS: "process",
}


def flag_name(field: str) -> str:
    """The flag of a field: `max_model_len` is `--max-model-len`."""
    return "--" + field.replace("_", "-")


def add_settings(parser: argparse.ArgumentParser, *, groups: tuple[str, ...]) -> None:
    """Add a flag for every setting of these groups; `given` reads them back."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"YAML file with settings by name (env {ENVIRONMENT_PREFIX}CONFIG)",
    )
    for group in groups:
        section = parser.add_argument_group(GROUPS[group])
        for name, field in Settings.model_fields.items():
            if name != "model" and _extra(field).get("group") == group:
                _add(section, name, field)


def given(arguments: argparse.Namespace) -> dict[str, object]:
    """The settings that were given as flags, by field name."""
    values = vars(arguments)
    return {
        name: values[name]
        for name in Settings.model_fields
        if name in values and values[name] is not None
    }


def _extra(field: FieldInfo) -> dict[str, object]:
    extra = field.json_schema_extra
    return dict(extra) if isinstance(extra, dict) else {}


def _add(section: "argparse._ArgumentGroup", name: str, field: FieldInfo) -> None:
    text = _help_text(name, field)
    if field.annotation is bool:
        section.add_argument(
            flag_name(name),
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=text,
        )
        return
    repeatable = get_origin(field.annotation) is tuple
    section.add_argument(
        flag_name(name),
        action="append" if repeatable else "store",
        default=argparse.SUPPRESS,
        choices=_choices(field.annotation),
        metavar=None if _choices(field.annotation) else _metavar(name, field),
        help=text,
    )


def _choices(annotation: object) -> tuple[str, ...] | None:
    members = get_args(annotation) if get_origin(annotation) is UnionType else (annotation,)
    for member in (*members, *get_args(annotation)):
        if get_origin(member) is Literal:
            return get_args(member)
    return None


def _metavar(name: str, field: FieldInfo) -> str:
    unit = _extra(field).get("unit")
    if unit is not None:
        return str(unit).upper()
    for ending, metavar in (("file", "FILE"), ("dir", "FOLDER"), ("template", "FILE")):
        if name.endswith(ending):
            return metavar
    return "N" if "int" in str(field.annotation) else "TEXT"


def _help_text(name: str, field: FieldInfo) -> str:
    notes = []
    unit = _extra(field).get("unit")
    if unit is not None:
        notes.append(f"in {unit}")
    if field.default not in (None, (), ""):
        notes.append(f"default {_shown(field.default)}")
    notes.append(f"env {ENVIRONMENT_PREFIX}{name.upper()}")
    # argparse formats help with %, so a literal one is doubled.
    return f"{field.description} ({', '.join(notes)})".replace("%", "%%")


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)
