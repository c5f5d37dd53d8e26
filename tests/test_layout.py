"""What keeps the four packages apart, and what the repository says of itself, holds."""

import ast
import functools
import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "weights", "sampler", "server")
BELOW_SERVER = PACKAGES[:3]
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
READS_ENVIRONMENT = {"server/settings.py", "kernels/dispatch.py"}
WEB_FRAMEWORK = ("fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client", "structlog")

# In pieces, so that this file does not hold what it looks for.
_MACHINE_PATHS = [
    "/wo" + "rk/",
    "/tmp/" + "w/",
    "/ro" + "ot/",
    "/opt/" + "wheels",
    "/opt/" + "pypi",
]
_REGISTRY_HOSTS = [
    "py" + "pi.org",
    "python" + "hosted.org",
    "download." + "pytorch.org",
    "npm" + "js.org",
]
_FORBIDDEN = re.compile(
    "|".join(rf"(?<!\w){re.escape(text)}" for text in _MACHINE_PATHS + _REGISTRY_HOSTS)
)
_BINARY = {".safetensors", ".ckpt", ".png", ".gguf"}

_IMPORT_WITHOUT_WEB = f"""
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {(*WEB_FRAMEWORK, "server")!r}:
            raise ImportError(f"{{name}} is imported")

sys.meta_path.insert(0, Refuse())
for package in {BELOW_SERVER!r}:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(module.name)
        print(module.name)
"""


def repository_files():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("needs a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@functools.cache
def trees():
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in MODULES}


def test_import_contracts_hold():
    lint_imports = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run(
        [lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_name_resolves_to_our_package(name):
    spec = importlib.util.find_spec(name)
    assert Path(spec.origin) == ROOT / name / "__init__.py"


@pytest.mark.parametrize("name", PACKAGES)
def test_no_dependency_provides_a_package_of_that_name(name):
    assert set(packages_distributions().get(name, [])) <= {"estuary-server"}


def test_everything_below_the_server_imports_without_the_web_framework():
    imported = subprocess.run(
        [sys.executable, "-c", _IMPORT_WITHOUT_WEB],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert imported.returncode == 0, imported.stderr
    assert "sampler.engine_process" in imported.stdout.split()


def test_only_the_settings_read_the_environment():
    reading = {
        name
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    }
    assert reading == READS_ENVIRONMENT


def test_no_function_imports():
    importing = [
        f"{name}:{inner.lineno}"
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]
    assert importing == []


def test_no_module_imports_for_type_checking_only():
    hidden = [path.name for path in MODULES if "TYPE_CHECKING" in path.read_text()]
    assert hidden == []


def test_no_file_names_a_machine_or_a_registry():
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in repository_files()
        if path.suffix not in _BINARY
        for match in _FORBIDDEN.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def locked():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def asked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"].values()
    asked = [*project["dependencies"], *(text for extra in optional for text in extra)]
    return [Requirement(text) for text in asked]


def test_the_lock_names_exact_versions():
    loose = [str(entry) for entry in locked() if not str(entry.specifier).startswith("==")]
    assert [Requirement(text).name for text in loose] == ["triton"]


def test_the_lock_has_every_dependency_in_a_version_that_is_asked_for():
    versions = {
        canonicalize_name(entry.name): str(entry.specifier).removeprefix("==")
        for entry in locked()
        if entry.name != "triton"
    }
    asked = [entry for entry in asked_for() if entry.name not in {"torch", "triton"}]
    unmet = [
        str(entry)
        for entry in asked
        if not entry.specifier.contains(versions.get(canonicalize_name(entry.name), "0"))
    ]
    assert unmet == []


def test_every_installation_takes_the_same_torch():
    text = "".join((ROOT / name).read_text() for name in ("Makefile", "Dockerfile"))
    assert set(re.findall(r"torch==([\d.]+\d)", text)) == {"2.13.0"}


# A wing of which others use more names is public as a whole.
MOST_NAMES = 50


def folders(*names):
    return sorted({path.parent for name in names for path in (ROOT / name).rglob("*.py")})


def test_no_folder_has_more_than_twenty_modules():
    sizes = {
        str(folder.relative_to(ROOT)): len([*folder.glob("*.py")])
        for folder in folders(*PACKAGES)
        if folder.name != "families"
    }
    assert {name: size for name, size in sizes.items() if size > 20} == {}


def wings():
    return [folder for folder in folders(*PACKAGES) if folder.parent != ROOT]


def taken_from_outside(wing):
    """Names that modules of the packages take from a wing that they are not in."""
    prefix = ".".join(wing.relative_to(ROOT).parts)
    return {
        alias.name
        for name, tree in trees().items()
        if not (ROOT / name).is_relative_to(wing)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and (node.module == prefix or (node.module or "").startswith(prefix + "."))
        for alias in node.names
    }


@pytest.mark.parametrize("wing", wings(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_wing_says_what_lives_there_and_what_others_use(wing):
    tree = ast.parse((wing / "__init__.py").read_text())
    said = ast.get_docstring(tree)
    assert said.splitlines()[0].endswith(".")
    if len(tree.body) == 1:
        names, taken = said.partition("\n\n")[2], taken_from_outside(wing)
        public = "every public name" in names
        assert public == (len(taken) > MOST_NAMES)
        assert public or set(re.findall(r"`(\w+)`", names)) == taken


@pytest.mark.parametrize("package", PACKAGES)
def test_tests_lie_beside_what_they_are_named_after(package):
    tests = ROOT / "tests" / package
    beside = {
        path.stem: {other.relative_to(ROOT / package).parent for other in places}
        for path in tests.rglob("test_*.py")
        if (places := [*(ROOT / package).rglob(path.stem.removeprefix("test_") + ".py")])
    }
    astray = [
        path.relative_to(ROOT).as_posix()
        for path in tests.rglob("test_*.py")
        if path.stem in beside and path.relative_to(tests).parent not in beside[path.stem]
    ]
    assert astray == []


def test_every_folder_of_tests_with_tests_has_a_folder_of_modules():
    astray = [
        str(folder.relative_to(ROOT))
        for name in PACKAGES
        for folder in folders(f"tests/{name}")
        if not (ROOT / folder.relative_to(ROOT / "tests")).is_dir()
    ]
    assert astray == []
