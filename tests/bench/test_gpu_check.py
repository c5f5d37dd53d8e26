"""What `make gpu-check` runs can be run: here without a GPU, up to the point where it needs one."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()


def recipe():
    """The lines of what `gpu-check` runs, part by part, with the list of benchmarks put in."""
    listed = re.search(r"^GPU_BENCHMARKS := (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    for part in re.search(r"^gpu-check: (.*)$", MAKEFILE, re.MULTILINE)[1].split():
        lines = re.search(rf"^{part}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1].splitlines()
        for line in lines:
            if "$$name" in line:
                yield from (line.split("do ")[1].replace("$$name;", name) for name in listed)
            else:
                yield line


BENCHMARKS = [
    line.split(" -m ")[1].removesuffix(" done").split()
    for line in recipe()
    if "tests.bench" in line
]


def run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    monkeypatch.delitem(sys.modules, module, raising=False)
    runpy.run_module(module, run_name="__main__")


def test_the_recipe_runs_kernel_tests_whole_decodes_and_benchmarks():
    tests = [line for line in recipe() if "pytest" in line]
    assert [line.split()[-1] for line in tests] == ["tests/kernels", "tests/sampler"]
    for line in tests:
        folder = ROOT / line.split()[-1]
        assert any(
            re.search(r"\bmark\.gpu\b", file.read_text()) for file in folder.rglob("test_*.py")
        )
    names = {module for module, *_ in BENCHMARKS}
    here = {f"tests.bench.{file.stem}" for file in Path(__file__).parent.glob("bench_*.py")}
    need_a_gpu = {
        name
        for name in here
        if "require_gpu()" in (ROOT / f"{name.replace('.', '/')}.py").read_text()
    }
    assert names == need_a_gpu


@pytest.mark.parametrize("command", BENCHMARKS, ids=lambda command: command[0].split(".")[-1])
def test_a_benchmark_understands_its_arguments(command, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *command, "--help")
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure")
@pytest.mark.parametrize("command", BENCHMARKS, ids=lambda command: command[0].split(".")[-1])
def test_a_benchmark_says_that_it_needs_a_gpu(command, monkeypatch):
    with pytest.raises(SystemExit, match="measures a CUDA GPU, and there is none"):
        run(monkeypatch, *command)
