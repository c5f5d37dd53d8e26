"""Draw exact answers against forwards, a panel a task: python -m tests.bench.draw_tasks

Reads tests/bench/results/evo_tasks.json, writes docs/evo-tasks.svg.
"""

import json
import math
from pathlib import Path

from tests.bench.report import RESULTS

PICTURE = Path(__file__).parents[2] / "docs" / "evo-tasks.svg"
PANEL, HEIGHT, LEFT, TOP = 250, 200, 44, 48
COLOURS = {
    "ar": "#444444",
    "one jump": "#999999",
    "fixed path": "#c77d2e",
    "masks": "#2e7dc7",
    "adaptive": "#c72e5a",
}
MOST_FORWARDS = 40


def place(panel: int, forwards: float, exact: float) -> tuple[float, float]:
    """Where a point stands; forwards on a logarithmic axis."""
    x = LEFT + panel * (PANEL + 24) + PANEL * math.log(forwards) / math.log(MOST_FORWARDS)
    return x, TOP + HEIGHT * (1 - exact)


def axes(panel: int, task: str) -> list[str]:
    """Frame, ticks and title of a panel."""
    left, bottom = place(panel, 1, 0)
    lines = [
        f'<rect x="{left:.0f}" y="{TOP}" width="{PANEL}" height="{HEIGHT}" fill="none" '
        'stroke="#bbb"/>',
        f'<text x="{left:.0f}" y="{TOP - 8}" font-weight="bold">{task}</text>',
    ]
    for forwards in (1, 2, 4, 8, 16, 32):
        x, _ = place(panel, forwards, 0)
        lines.append(
            f'<text x="{x:.0f}" y="{bottom + 16:.0f}" text-anchor="middle">{forwards}</text>'
        )
    for share in (0, 50, 100):
        _, y = place(panel, 1, share / 100)
        lines.append(f'<text x="{left - 6:.0f}" y="{y + 4:.0f}" text-anchor="end">{share}</text>')
    return lines


def legend() -> list[str]:
    """A dot and a name for every kind of decoding."""
    lines = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        x = LEFT + number * 130
        lines.append(f'<circle cx="{x}" cy="14" r="5" fill="{colour}"/>')
        lines.append(f'<text x="{x + 10}" y="18">{name}</text>')
    return lines


def main() -> None:
    rows = json.loads((RESULTS / "evo_tasks.json").read_text())["arms"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    parts = legend()
    for panel, task in enumerate(tasks):
        parts += axes(panel, task)
        for row in (row for row in rows if row["task"] == task):
            colour = next(c for name, c in COLOURS.items() if row["decoding"].startswith(name))
            x, y = place(panel, row["forwards"], row["exact"])
            title = f"{row['decoding']}: {row['exact']:.1%} exact in {row['forwards']} forwards"
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}" fill-opacity="0.8">'
                f"<title>{title}</title></circle>"
            )
    width = LEFT + len(tasks) * (PANEL + 24)
    PICTURE.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{TOP + HEIGHT + 44}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        + "\n".join(parts)
        + f'<text x="{LEFT}" y="{TOP + HEIGHT + 36}">forwards of an answer, mean (logarithmic); '
        "exact answers in percent</text></svg>\n"
    )


if __name__ == "__main__":
    main()
