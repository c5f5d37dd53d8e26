"""What no module may do: run code that comes from data, or measure time by a clock that is set."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    path
    for name in ("kernels", "weights", "sampler", "server")
    for path in (ROOT / name).rglob("*.py")
]
# Reads the names in a pickle to build plain values from it, and runs none of them.
READS_PICKLES = {"lightning_file.py"}
# When an answer was made, as OpenAI's API says it; log lines; spans. None of them is a duration.
TELLS_THE_TIME = {"state.py", "exchange.py", "logging_setup.py", "otel.py"}


def calls(path):
    """Dotted names of everything a module calls."""
    return {
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    }


def imports(path):
    tree = ast.parse(path.read_text())
    named = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    plain = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    return {name.partition(".")[0] for name in [*named, *plain]}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_runs_code_from_data(path):
    dangerous = {"eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "os.system"}
    assert calls(path) & dangerous == set()
    assert imports(path) & {"dill", "cloudpickle", "marshal", "shelve", "joblib"} == set()
    assert path.name in READS_PICKLES or "pickle" not in imports(path)
    assert "shell=True" not in path.read_text()


def test_no_module_trusts_code_of_a_checkpoint():
    told = [path.name for path in MODULES if "trust_remote_code" in path.read_text()]
    reading = [path.name for path in MODULES if "auto_map" in path.read_text()]
    assert (told, reading) == ([], [])


def test_durations_come_from_a_clock_that_nobody_sets():
    wall = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}
    telling = {path.name for path in MODULES if calls(path) & wall}
    assert telling <= TELLS_THE_TIME


def test_the_engine_listens_on_no_port():
    listening = [
        path.name
        for path in MODULES
        if any(call.endswith((".bind", ".listen", "create_server")) for call in calls(path))
    ]
    assert listening == ["serve.py"]
