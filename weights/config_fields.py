"""`ConfigFields`: a JSON object of a checkpoint, read field by field and by type.

Not msgspec: it decodes structures of fixed names, while a family reads one field under several
names, takes null for absent and 3.0 for a whole number, and refuses a value with its reason.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from weights.errors import CheckpointError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True, slots=True)
class ConfigFields:
    """Typed access to a JSON object; a field that is null counts as absent.

    values: the object
    where:  what it is called in messages, such as "config.json"

    Every reader raises CheckpointError when the field has another type, and the ones without a
    default when it is absent.
    """

    values: Mapping[str, Json]
    where: str

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """Read a whole number; 3.0 counts as one."""
        value = self._value(name, default)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "a whole number", value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Read a number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, "a number", value)
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """Read a boolean."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """Read a string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "a string", value)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Read a list of strings; empty when absent."""
        value = self.values.get(name)
        items = [] if value is None else value
        if not isinstance(items, list):
            raise self._wrong(name, "a list of strings", value)
        strings = tuple(item for item in items if isinstance(item, str))
        if len(strings) != len(items):
            raise self._wrong(name, "a list of strings", value)
        return strings

    def numbers(self, name: str) -> tuple[float, ...]:
        """Read a list of numbers; empty when absent."""
        value = self.values.get(name)
        items = [] if value is None else value
        if not isinstance(items, list):
            raise self._wrong(name, "a list of numbers", value)
        found = tuple(
            float(item)
            for item in items
            if isinstance(item, int | float) and not isinstance(item, bool)
        )
        if len(found) != len(items):
            raise self._wrong(name, "a list of numbers", value)
        return found

    def pairs(self, name: str) -> tuple[tuple[float, float], ...]:
        """Read a list of pairs of numbers; empty when absent."""
        value = self.values.get(name)
        found: list[tuple[float, float]] = []
        for item in [] if value is None else value if isinstance(value, list) else [value]:
            numbers = ConfigFields({name: item}, self.where).numbers(name)
            if len(numbers) != 2:
                raise self._wrong(name, "a list of pairs of numbers", value)
            found.append((numbers[0], numbers[1]))
        return tuple(found)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Read one token id or a list of them; empty when absent."""
        value = self.values.get(name)
        items = value if isinstance(value, list) else [] if value is None else [value]
        ids = tuple(item for item in items if isinstance(item, int) and not isinstance(item, bool))
        if len(ids) != len(items):
            raise self._wrong(name, "a token id or a list of them", value)
        return ids

    def section(self, name: str) -> "ConfigFields | None":
        """Read a nested object; None when absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(name, "an object", value)
        return ConfigFields(value, f"{self.where}: {name}")

    def refuse(self, name: str, reason: str) -> CheckpointError:
        """Build the error that refuses a field's value."""
        return CheckpointError(f"{self.where}: {name} is {self.values.get(name)!r}, {reason}")

    def _value(self, name: str, default: Json) -> Json:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise CheckpointError(f"{self.where} has no field {name}")
        return default

    def _wrong(self, name: str, wanted: str, value: Json) -> CheckpointError:
        return CheckpointError(f"{self.where}: {name} must be {wanted}, got {value!r}")


def read_json_object(path: Path) -> dict[str, Json]:
    """Read a file that holds one JSON object; raises CheckpointError when it does not."""
    try:
        value: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value
