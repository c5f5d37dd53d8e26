"""Every command of the pages can be run: flags parse, requests are answered, files are there."""

import ast
import json
import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from server.settings import ENVIRONMENT_PREFIX, Settings, load_settings
from server.shell.cli import build_parser
from server.shell.flags import given
from tests.api_reference import PAGE, rendered
from tests.server.scripted_engine import ScriptedEngine
from tests.test_docs import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_BLOCK = re.compile(r"^```(sh|bash|console|)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Z_]+=")
# Flags of programs that are not ours.
DOCKER = {"--build-arg", "--target", "--read-only", "--tmpfs", "--rm", "-t", "-p", "-v", "-e", "-f"}
OPENTELEMETRY = "OTEL_"


def commands():
    """(page, words) of every command of every page; words after a comment mark are none."""
    for page in PAGES:
        for language, block in _BLOCK.findall(page.read_text()):
            if not language and block.split()[0] not in CHECKS:
                continue
            for line in _lines(block):
                for words in _split(shlex.split(line, comments=True)):
                    yield pytest.param(page, words, id=f"{page.name}: {' '.join(words)[:60]}")


def _lines(block):
    """Whole commands: lines that a backslash or an open quote joins are one."""
    held = ""
    for line in block.splitlines():
        held = f"{held}\n{line}" if held else line
        try:
            shlex.split(held, comments=True)
        except ValueError:
            continue
        if not held.rstrip().endswith("\\"):
            yield held
            held = ""
    assert not held, f"a command without an end: {held}"


def _split(words):
    """The parts of a line that && joins, without where their output goes."""
    part = []
    for word in [*words, "&&"]:
        if word == "&&":
            if part:
                yield part
            part = []
        else:
            part.append(word)


def check_estuary(words, _page):
    if "[MODEL]" in words:
        return
    parsed = build_parser().parse_args(words)
    load_settings(given(parsed))


def check_make(words, _page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert words[0] in targets


def check_python(words, _page):
    assert words[0] == "-m"
    path = ROOT / (words[1].replace(".", "/") + ".py")
    path = path if path.exists() else path.with_suffix("") / "__main__.py"
    flags = {word for word in words[2:] if word.startswith("--")} - {"--help"}
    strings = {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert flags <= strings


def check_docker(words, _page):
    if words[0] == "compose":
        assert (ROOT / words[words.index("-f") + 1]).exists()
        return
    assert words[0] in ("build", "run")
    assert {word for word in words[1:] if word.startswith("-")} <= DOCKER
    stages = re.findall(r"^FROM .* AS (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert "--target" not in words or words[words.index("--target") + 1] in stages


def check_pip(words, _page):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = re.fullmatch(r"estuary-server\[(\w+)\]", words[1])
    assert words[0] == "install"
    assert named[1] in extras


def check_kubectl(words, _page):
    assert words[:2] == ["apply", "-k"]
    assert (ROOT / words[2] / "kustomization.yaml").exists()


def check_pytest(words, _page):
    marks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    known = {mark.partition(":")[0] for mark in marks["markers"]}
    for flag, value in pairwise(words):
        assert flag != "-m" or set(re.findall(r"\w+", value)) - {"not", "and", "or"} <= known
    assert all((ROOT / word).exists() for word in words if word.startswith("tests"))


def check_nothing(_words, _page):
    """What every shell has."""


CHECKS = {
    "estuary": check_estuary,
    "make": check_make,
    "python": check_python,
    "python3": check_python,
    "docker": check_docker,
    "pip": check_pip,
    "kubectl": check_kubectl,
    "pytest": check_pytest,
    "echo": check_nothing,
    "curl": check_nothing,
}


COMMANDS = list(commands())
CURLS = [
    pytest.param(*param.values, id=param.id) for param in commands() if param.values[1][0] == "curl"
]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("page", "words"), COMMANDS)
def test_a_command_of_the_pages_can_be_run(page, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "estuary.yaml").write_text("port: 9000\n")
    words = list(words)
    while _ASSIGNMENT.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        known = {ENVIRONMENT_PREFIX + field.upper() for field in Settings.model_fields}
        assert name in known or name.startswith(OPENTELEMETRY) or name in ("TRITON_INTERPRET",)
        monkeypatch.setenv(name, value)
    program = Path(words[0]).name
    assert program in CHECKS, f"{page.name} has a command that nothing checks: {program}"
    CHECKS[program](words[1:], page)


@pytest.mark.anyio
@pytest.mark.parametrize(("page", "words"), CURLS)
async def test_a_request_of_the_pages_is_answered(serve, page, words):
    (url,) = [word for word in words if "://" in word]
    path = "/" + url.split("/", 3)[3]
    engine = ScriptedEngine(modes=("ar", "diffusion", "speculative"), context_length=4096)
    async with serve(engine, strict_params=True) as served:
        if "-d" in words:
            body = json.loads(words[words.index("-d") + 1])
            response = await served.client.post(path, json=body)
        else:
            response = await served.client.get(path)
    assert response.status_code == 200, (page.name, response.text)


def test_there_are_commands_and_requests():
    assert len(COMMANDS) > 20
    assert len(CURLS) > 5


def test_the_reference_is_what_the_code_says():
    assert PAGE.read_text() == rendered(), "run: python -m tests.api_reference"
