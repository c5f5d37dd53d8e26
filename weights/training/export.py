"""A trained model as a folder that can be served: weights, config, tokenizer, model card."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from torch import Tensor

from weights.config_fields import Json
from weights.training.data.text import END_OF_TEXT_ID

CARD = "README.md"
NOTICE = "NOTICE"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What README.md says.

    title, about, limits: paragraphs
    command:    what made it
    training:   course of the run by name, such as steps and seed
    figures:    what was measured, nested at most twice
    texts, measured, licence: what was trained on, what figures are of, and whose it all is
    """

    title: str
    about: str
    limits: str
    command: str
    training: dict[str, Json]
    figures: dict[str, Json]
    texts: str = (
        "The texts, where they are from and their licences are in `NOTICE`; one document in fifty "
        "was held out."
    )
    measured: str = "on held-out text that was never trained on"
    licence: str = "The texts they were trained on keep their own (`NOTICE`)."

    def render(self) -> str:
        """Write it as Markdown."""
        return "\n".join(
            (
                f"# {self.title}\n",
                f"{self.about}\n",
                "## How it was made\n",
                f"    {self.command}\n",
                _table("training", self.training),
                f"Every logged step is in `training_log.jsonl`. {self.texts}\n",
                "## Figures\n",
                f"Of the weights as they are stored here, {self.measured}. NLL is in nats per "
                "token; perplexity is its exponential.\n",
                _table("figure", dict(_flat(self.figures))),
                "## Limits\n",
                f"{self.limits}\n",
                "## Licence\n",
                f"The weights are under the licence of this project, Apache-2.0. {self.licence}\n",
            )
        )


def _table(head: str, values: dict[str, Json]) -> str:
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in values.items())
    return f"| {head} | |\n| --- | --- |\n{rows}\n"


def _cell(value: Json) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return ", ".join(_cell(entry) for entry in value)
    return str(value)


def _flat(figures: dict[str, Json]) -> Iterator[tuple[str, Json]]:
    """Nested figures with their names joined."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from ((f"{name} {inner}", figure) for inner, figure in _flat(value))
        elif isinstance(value, list) and value and isinstance(value[0], list):
            yield from (
                (f"{name} at {_cell(pair[0])}", pair[1:])
                for pair in value
                if isinstance(pair, list)
            )
        else:
            yield name, value


def export(
    out: Path,
    *,
    tensors: dict[str, Tensor],
    config: dict[str, Json],
    tokenizer: tokenizers.Tokenizer,
    card: ModelCard,
    notices: list[Path] | None,
) -> None:
    """Write everything into a folder, weights in float16; notices become one file.

    notices: of the texts, or None where there were none to have any
    """
    out.mkdir(parents=True, exist_ok=True)
    stored = {
        name: value.detach().to("cpu", torch.float16).contiguous()
        for name, value in tensors.items()
    }
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    _write_json(out / "config.json", config)
    _write_json(
        out / "generation_config.json",
        {"bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID},
    )
    tokenizer.save(str(out / "tokenizer.json"))
    (out / CARD).write_text(card.render(), encoding="utf-8")
    if notices is None:
        return
    text = "\n\n".join(path.read_text(encoding="utf-8").strip() for path in notices)
    (out / NOTICE).write_text(
        "These weights were trained on the following texts.\n\n"
        f"{text or 'No notice stood beside the texts.'}\n",
        encoding="utf-8",
    )


def _write_json(path: Path, values: dict[str, Json]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
