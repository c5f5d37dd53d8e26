"""The committed results as the tables of docs/benchmarks.md, so that no figure is copied by hand.

`write_json` of the harness calls it; alone: python -m tests.bench.report

A stretch of the page between `<!-- results: NAME -->` and `<!-- end -->` is written anew from
`results/NAME.json`: where it ran, its plain values, and each of its lists of rows as a table. Rows
keep their plain values only, and of long lists the page says no more than how long they are.
"""

import json
import re
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
_MOST_ROWS = 40
_STRETCH = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(page: str, results: Path = RESULTS) -> str:
    """The page with every stretch as the results say."""

    def stretch(match: re.Match[str]) -> str:
        return match[1] + _stretch(results / f"{match[2]}.json") + match[3]

    return _STRETCH.sub(stretch, page)


def _stretch(path: Path) -> str:
    if not path.is_file():
        return "\nNot measured yet.\n\n"
    content = json.loads(path.read_text())
    machine = content.pop("machine")
    parts = [_where(machine, path.name)]
    plain = {name: value for name, value in content.items() if _is_plain(value)}
    if plain:
        parts.append("; ".join(f"{_words(n)}: {_cell(v)}" for n, v in plain.items()))
    for name, value in content.items():
        if isinstance(value, dict):
            value = [{"what": _words(n), "value": v} for n, v in value.items()]
        if isinstance(value, list) and value:
            parts += _listed(name, value)
    return "\n" + "\n\n".join(parts) + "\n\n"


def _listed(name: str, rows: list[dict[str, object]]) -> list[str]:
    title = _words(name).capitalize()
    if len(rows) > _MOST_ROWS:
        return [f"{title}: {len(rows)} rows, in the file."]
    return [f"{title}:", _table(rows)]


def _where(machine: dict[str, object], name: str) -> str:
    changes = " with changes" if machine["is_dirty"] else ""
    device = machine["gpu"] or f"{machine['processor']}, {machine['num_threads']} threads"
    return (
        f"`{machine['command']}` at commit {machine['commit']}{changes}, on {device}; torch "
        f"{machine['torch']}, triton {machine['triton']} (`{name}`)."
    )


def _table(rows: list[dict[str, object]]) -> str:
    names = [name for name in rows[0] if all(_is_shown(row.get(name)) for row in rows)]
    lines = [names, ["---"] * len(names)]
    lines += [[_cell(row.get(name)) for name in names] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _is_shown(value: object) -> bool:
    if isinstance(value, list):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, bool) or _is_plain(value)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_cell(each) for each in value)
    if value is None:
        return "-"
    # Three digits are what a measurement is good for; counts are whole anyway.
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else _whole(value)


def _whole(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def update_page() -> None:
    """Bring the page up to date with the results."""
    PAGE.write_text(rendered(PAGE.read_text()))


if __name__ == "__main__":
    update_page()
