"""Draws one answer in three modes, coloured by how its tokens came, as an SVG picture.

Run: python -m tests.bench.draw_answers [--model PATH] [--adapter FOLDER] OUT.svg

AR tokens are blue, verified drafts green, diffusion orange. The darker, the less certain the
network was when the token was taken; the height of the bar below a token is the progress t that
its uncertainty stands for (the checkpoint's calibration). Lookup is off: drafts are the canvas's.
"""

import argparse
import html
import math
from pathlib import Path

import numpy as np

from sampler.border.engine_config import EngineConfig
from sampler.border.request import DecodingMode, DecodingParams, Request, SamplingParams
from sampler.engine_process import load_engine
from sampler.spans.latent_moves import Information
from weights import describe_model
from weights.files.default_model import DEFAULT_CANVAS_ADAPTER, default_model_path

PROMPT = "Write a Python function that adds two numbers."
COLOURS = {"ar": (37, 99, 235), "verified": (22, 163, 74), "diffusion": (234, 88, 12)}
LEGEND = {
    "ar": "drawn by the base",
    "verified": "canvas draft, confirmed by the base",
    "diffusion": "taken from the canvas",
}
MODES = {
    "ar": DecodingParams(mode=DecodingMode.AR, trace=True),
    "speculative": DecodingParams(
        mode=DecodingMode.SPECULATIVE, width=5, drafts="canvas", trace=True
    ),
    "diffusion": DecodingParams(mode=DecodingMode.DIFFUSION, trace=True),
}
CHARACTER, LINE, WIDTH, BAR = 7.25, 30, 900, 7


def load(model, adapter, question):
    """The engine of the default model or another, what is known of it, and a chat prompt's ids."""
    path = model or default_model_path(Path.home() / ".cache" / "estuary")
    described = describe_model(path, canvas_adapter=adapter)
    engine, _ = load_engine(
        EngineConfig(
            model=str(path),
            quantization="int8",
            device="cpu",
            max_context=512,
            canvas_adapter=str(adapter),
        )
    )
    text = described.chat_template.render(
        [{"role": "user", "content": question}], add_generation_prompt=True
    )
    return engine, described, described.tokenizer.encode(text, add_special_tokens=False)


def answer(engine, prompt, mode):
    params = SamplingParams(max_tokens=64, temperature=0.0, decoding=MODES[mode])
    engine.submit(Request(id=mode, prompt=tuple(prompt), params=params))
    tokens, trace, stats = [], [], None
    while engine.has_work:
        for delta in engine.step().deltas:
            tokens.extend(delta.token_ids)
            trace.extend(delta.trace or ())
            stats = delta.stats or stats
    return tokens, trace, stats


def draw(pieces, information, top):
    """SVG elements of (text, kind, uncertainty) pieces from this height on, and where they end."""
    elements, x, y = [], 12.0, top
    for text, kind, uncertain in pieces:
        shown = text.replace("\n", " ")
        width = CHARACTER * max(len(shown), 1)
        if x + width > WIDTH - 12 or "\n" in text:
            x, y = 12.0, y + LINE
        red, green, blue = COLOURS[kind]
        opacity = 0.15 + 0.85 * min(uncertain * 3, 1.0)
        t = float(information.target(np.array([uncertain]))[0])
        fill = f"rgb({red},{green},{blue})"
        elements.append(
            f'<rect x="{x:.1f}" y="{y - 14}" width="{width:.1f}" height="18" rx="2" '
            f'fill="{fill}" fill-opacity="{opacity:.2f}"/>'
            f'<rect x="{x:.1f}" y="{y + 5}" width="{width - 1:.1f}" height="{BAR * t:.1f}" '
            f'fill="{fill}"/>'
            f'<text x="{x:.1f}" y="{y}" xml:space="preserve">{html.escape(shown)}</text>'
        )
        x += width
    return elements, y + LINE


def draw_legend(top):
    """SVG elements that say what colours, shades and bars mean, at this height."""
    elements, x = [], 12.0
    for kind, meaning in LEGEND.items():
        fill = "rgb({},{},{})".format(*COLOURS[kind])
        elements.append(
            f'<rect x="{x:.1f}" y="{top - 10}" width="12" height="12" fill="{fill}" '
            f'fill-opacity="0.6"/><text x="{x + 18:.1f}" y="{top}">{meaning}</text>'
        )
        x += 18 + CHARACTER * (len(meaning) + 3)
    rest = "darker: less certain; bar: t that the uncertainty stands for"
    elements.append(f'<text x="12" y="{top + 18}" fill="#555">{rest}</text>')
    return elements


def read_arguments(description: str) -> tuple[Path, Path | None, Path]:
    """Where the picture goes, and the model and the adapter that are asked."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--adapter", type=Path, default=DEFAULT_CANVAS_ADAPTER)
    arguments = parser.parse_args()
    return arguments.out, arguments.model, arguments.adapter


def main() -> None:
    out, model, adapter = read_arguments(__doc__)
    engine, described, prompt = load(model, adapter, PROMPT)
    elements, y = draw_legend(20), 64
    for mode in MODES:
        tokens, trace, stats = answer(engine, prompt, mode)
        pieces = [
            (
                described.tokenizer.decode([token], skip_special_tokens=True),
                entry.kind.value,
                entry.uncertainty,
            )
            for token, entry in zip(tokens, trace, strict=True)
        ]
        forwards = max(stats.steps, 1)
        share = (len(tokens) - 1) / max(forwards - 1, 1)
        label = f"{mode}: {len(tokens)} tokens in {forwards} forwards ({share:.2f} a forward)"
        elements.append(f'<text x="12" y="{y}" font-weight="bold">{label}</text>')
        drawn, y = draw(pieces, Information(described.family.rule.latent.calibration), y + LINE)
        elements += drawn
        y += 8
    height = math.ceil(y)
    out.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="ui-monospace, monospace" font-size="12">'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>{"".join(elements)}</svg>\n'
    )
    print(out)


if __name__ == "__main__":
    main()
