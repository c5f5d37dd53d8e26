"""What the balance decided while a load ran, and a picture of it."""

import asyncio
import html
from collections.abc import Sequence
from dataclasses import dataclass

from server.engine import Engine

_SAMPLE_S = 0.05
# The picture, in pixels: the widths above, the price and the running requests below.
_LEFT, _WIDTH, _RIGHT = 56, 720, 130
_TOP, _SHARES, _GAP, _LINES = 24, 180, 36, 120
_HEIGHT = _TOP + _SHARES + _GAP + _LINES + 28
# From AR on, the widths in order.
_COLOURS = (
    "#8a5a00", "#c7d7f5", "#9fbcec", "#7aa0e0", "#5585d0",
    "#3a6bb8", "#28529a", "#1b3c78", "#112a57",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Decisions:
    """The state of the balance at one time.

    time_s:  since the load began
    price:   what a row must gain to be worth its time, in tokens
    choices: rounds begun so far, by width; 0 is AR
    """

    time_s: float
    num_running: int
    num_waiting: int
    price: float
    choices: dict[int, int]


async def watch_decisions(engine: Engine, samples: list[Decisions]) -> None:
    """Sample the engine's metrics until cancelled."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    while True:
        metrics = engine.metrics
        samples.append(
            Decisions(
                time_s=loop.time() - started_s,
                num_running=metrics.num_running,
                num_waiting=metrics.num_waiting,
                price=metrics.row_price_tokens,
                choices=dict(metrics.widths_chosen),
            )
        )
        await asyncio.sleep(_SAMPLE_S)


def draw_decisions(samples: Sequence[Decisions]) -> str:
    """An SVG: shares of the widths chosen in each stretch of time, the price, what was running.

    Raises ValueError when no round was begun: a model that verifies no drafts has no balance.
    """
    if not samples or not any(samples[-1].choices.values()):
        raise ValueError("the balance chose nothing: this model or mode has no widths to choose")
    last_s = max(samples[-1].time_s, 1e-9)
    widths = sorted(samples[-1].choices)
    parts = [*_shares(samples, widths, last_s), *_curves(samples, last_s), *_legend(widths)]
    seconds = f"{last_s:.1f} s"
    parts.append(_text(_LEFT + _WIDTH, _HEIGHT - 8, seconds, anchor="end"))
    size = f"{_LEFT + _WIDTH + _RIGHT} {_HEIGHT}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _shares(samples: Sequence[Decisions], widths: list[int], last_s: float) -> list[str]:
    parts = [_text(_LEFT, 14, "rounds begun, by width")]
    before = samples[0]
    for sample in samples[1:]:
        counts = [sample.choices.get(w, 0) - before.choices.get(w, 0) for w in widths]
        total = sum(counts)
        # Metrics come with steps: a stretch without any is part of the next one.
        if total <= 0:
            continue
        x = _LEFT + _WIDTH * before.time_s / last_s
        width = _WIDTH * (sample.time_s - before.time_s) / last_s
        y = float(_TOP)
        for index, count in enumerate(counts):
            height = _SHARES * count / total
            colour = _COLOURS[min(index, len(_COLOURS) - 1)]
            if count:
                parts.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
                    f'fill="{colour}"/>'
                )
            y += height
        before = sample
    return parts


def _curves(samples: Sequence[Decisions], last_s: float) -> list[str]:
    top = _TOP + _SHARES + _GAP
    parts = [
        f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_LINES}" fill="#f4f6f6"/>',
        _text(_LEFT, top - 8, "price of a row in tokens (line), running requests (dotted)"),
    ]
    for values, style in (
        ([sample.price for sample in samples], 'stroke="#3a6bb8"'),
        ([float(sample.num_running) for sample in samples], 'stroke="#555" stroke-dasharray="2 3"'),
    ):
        most = max(max(values), 1e-9)
        points = " ".join(
            f"{_LEFT + _WIDTH * sample.time_s / last_s:.1f},{top + _LINES * (1 - value / most):.1f}"
            for sample, value in zip(samples, values, strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke-width="1.5" {style}/>')
    prices = max(sample.price for sample in samples)
    running = max(sample.num_running for sample in samples)
    parts.append(_text(_LEFT - 6, top + 10, f"{prices:.2g}", anchor="end"))
    parts.append(_text(_LEFT + _WIDTH + 6, top + 10, f"{running} running"))
    return parts


def _legend(widths: list[int]) -> list[str]:
    parts = []
    for index, width in enumerate(widths):
        y = _TOP + 18 * index
        colour = _COLOURS[min(index, len(_COLOURS) - 1)]
        x = _LEFT + _WIDTH + 10
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 18, y + 11, "AR" if width == 0 else f"width {width}"))
    return parts


def _text(x: float, y: float, content: str, *, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(content)}</text>'
