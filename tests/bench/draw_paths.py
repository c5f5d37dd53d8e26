"""Draws how t falls on a canvas of the default model, step by step, as an SVG picture.

Run: python -m tests.bench.draw_paths [--model PATH] [--adapter FOLDER] OUT.svg

A column is a position of the answer, a row a step. An open position is the darker the higher its t;
where a token is taken the cell has its kind: blue from the base's own row, orange from the canvas.
"""

import html
from dataclasses import replace

from sampler.border.request import DecodingMode, DecodingParams, EvoParams, Request, SamplingParams
from tests.bench.draw_answers import COLOURS, PROMPT, load, read_arguments

NUM_TOKENS, CANVAS = 24, 8
CELL, ROW, LEFT, TOP = 34, 14, 52, 84
MOVING = EvoParams(
    delta_min=1 / 32,
    delta_max=1 / 4,
    finalize_uncertainty=0.05,
    jump_uncertainty=0.02,
    uncertainty="entropy",
    order="any",
)


def follow(engine, prompt):
    """The answer's tokens and kinds, and of every step the open positions with their t."""
    decoding = DecodingParams(mode=DecodingMode.DIFFUSION, width=CANVAS, evo=MOVING, trace=True)
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    request = Request("one", tuple(prompt), params=replace(params, decoding=decoding))
    engine.submit(request)
    tokens, trace, steps, table = [], [], [], engine.table
    while engine.has_work:
        output = engine.step()
        for delta in output.deltas:
            tokens.extend(delta.token_ids)
            trace.extend(delta.trace or ())
        first, stop = int(table.final[0]), int(table.canvas_stop[0])
        columns = [p for p in range(first, stop) if table.is_open[0, p]]
        at = {p: float(table.latents.progress[0, p % table.latents.columns]) for p in columns}
        steps.append({p - len(prompt): t for p, t in at.items()} if engine.has_work else {})
    return tokens, trace, steps


def draw(texts, kinds, steps):
    """The picture's elements, and its height."""
    elements = []
    for i, text in enumerate(texts):
        x = LEFT + CELL * i + CELL / 2
        shown = html.escape(text.replace("\n", "\u23ce"))
        elements.append(
            f'<text x="{x}" y="{TOP - 8}" transform="rotate(-50 {x} {TOP - 8})" '
            f'xml:space="preserve">{shown}</text>'
        )
    waiting = set(range(len(texts)))
    for number, at in enumerate(steps):
        y = TOP + ROW * number
        elements.append(f'<text x="8" y="{y + 11}" fill="#555">{number + 1}</text>')
        reached = max(at, default=len(texts) - 1)
        taken = {p for p in waiting if p <= reached and p not in at}
        waiting -= taken
        for position, t in at.items():
            elements.append(cell(position, y, (75, 85, 99), 0.06 + 0.8 * t**3))
        elements += [cell(position, y, COLOURS[kinds[position]], 1.0) for position in taken]
    return elements, TOP + ROW * len(steps) + 10


def cell(position, y, colour, opacity):
    fill = "rgb({},{},{})".format(*colour)
    return (
        f'<rect x="{LEFT + CELL * position + 1}" y="{y + 1}" width="{CELL - 2}" '
        f'height="{ROW - 2}" fill="{fill}" fill-opacity="{opacity:.2f}"/>'
    )


def main() -> None:
    out, model, adapter = read_arguments(__doc__)
    engine, described, prompt = load(model, adapter, PROMPT)
    tokens, trace, steps = follow(engine, prompt)
    texts = [described.tokenizer.decode([token], skip_special_tokens=True) for token in tokens]
    elements, height = draw(texts, [entry.kind.value for entry in trace], steps)
    width = LEFT + CELL * NUM_TOKENS + 60
    out.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="ui-monospace, monospace" font-size="11">'
        f'<rect width="{width}" height="{height}" fill="white"/>{"".join(elements)}</svg>\n'
    )
    print(out)


if __name__ == "__main__":
    main()
