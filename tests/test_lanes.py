"""The parts of `make test` and `make nightly` together run every test."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()


def variable(name):
    return re.search(rf"^{name} := (.*)$", MAKEFILE, re.MULTILINE)[1]


def recipes(target):
    """The recipes of what `target` asks for, one text."""
    parts = re.search(rf"^{target}: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    found = [re.search(rf"^{part}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE) for part in parts]
    return "".join(recipe[1] for recipe in found if recipe is not None)


def test_every_marker_belongs_to_one_part():
    pytest_options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    markers = {text.split(":")[0] for text in pytest_options["ini_options"]["markers"]}
    marked, later = (variable(name).split(" or ") for name in ("MARKED", "LATER"))
    assert sorted(marked + later) == sorted(markers)


def test_what_is_left_for_later_has_its_own_part():
    run = recipes("test") + recipes("nightly")
    for marker in variable("LATER").split(" or "):
        assert f"-m {marker}" in run
    assert '-m "not ($(MARKED) or $(LATER))"' in recipes("test")
    assert '-m "($(MARKED)) and not ($(LATER))"' in recipes("test")


def test_every_triton_that_is_run_is_one_that_may_be_installed():
    lower = re.search(r'"triton>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert variable("TRITONS").split()[0].startswith(f"{lower}.")
