"""What every benchmark shares: where and on what it ran, percentiles, a table and a JSON file."""

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from tests.bench.report import RESULTS, update_page


def percentiles(values: Sequence[float], *points: int) -> dict[str, float]:
    """Percentiles by name: `p50`, `p95` ..."""
    return {f"p{point}": float(np.percentile(values, point)) for point in points}


def machine() -> dict[str, object]:
    """Commit, processor, device, versions and command line of this run."""
    return {
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "is_dirty": bool(_output("git", "status", "--porcelain", "--untracked-files=no")),
        "processor": _processor(),
        "num_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "command": "python -m " + " ".join([_module(), *map(_without_folder, sys.argv[1:])]),
    }


def print_table(rows: Sequence[dict[str, object]]) -> None:
    """Print rows that share their keys as a table."""
    names = list(rows[0])
    cells = [names] + [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def write_json(name: str, content: dict[str, object]) -> Path:
    """Write `results/<name>.json` with the machine beside the content, and the page of figures."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **content}, indent=1) + "\n")
    update_page()
    return path


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _without_folder(argument: str) -> str:
    """Paths of this machine say nothing to anybody else."""
    return Path(argument).name if argument.startswith(("/", "..")) else argument


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec is not None else Path(sys.argv[0]).name


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()
