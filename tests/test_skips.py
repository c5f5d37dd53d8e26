"""In CI a test may be skipped for want of a GPU, and for nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.skips import ALLOWED, WITHOUT

ROOT = Path(__file__).parents[1]
CONFTEST = "from tests.skips import pytest_make_collect_report, pytest_runtest_makereport\n"


def run_tests(folder, text, *, ci="true", without=""):
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_one.py").write_text(f"import pytest\n{text}\n")
    environment = os.environ | {
        "CI": ci,
        "TESTS_WITHOUT": without,
        "PYTHONPATH": str(ROOT),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder]
    return subprocess.run(
        [*command, "test_one.py"], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


SKIPS = "def test_one():\n    pytest.skip('{}')"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (SKIPS.format("needs openssl"), 1),
        ("@pytest.mark.skip(reason='needs openssl')\ndef test_one():\n    pass", 1),
        ("pytest.importorskip('no_such_package')", 1),
        (SKIPS.format("needs a GPU"), 0),
        ("@pytest.mark.xfail\ndef test_one():\n    raise ValueError", 0),
    ],
    ids=["inside", "mark", "whole module", "gpu", "expected failure"],
)
def test_a_skip_for_anything_but_a_gpu_fails_the_run(tmp_path, text, code):
    ended = run_tests(tmp_path, text)
    # A module that is not collected ends the run with 2, as a syntax error would.
    assert min(ended.returncode, 1) == code, ended.stdout
    assert ("may not be skipped" in ended.stdout) == bool(code)


def test_elsewhere_a_skip_is_a_skip(tmp_path):
    assert run_tests(tmp_path, SKIPS.format("needs openssl"), ci="").returncode == 0


def test_what_could_not_be_installed_excuses_its_own_tests_only(tmp_path):
    excused, other = SKIPS.format("needs promtool"), SKIPS.format("needs chromium")
    assert run_tests(tmp_path, excused, without="prometheus node").returncode == 0
    assert run_tests(tmp_path, other, without="prometheus node").returncode == 1


def test_no_reason_is_listed_that_no_test_gives():
    texts = [path.read_text() for path in ROOT.glob("tests/**/*.py")]
    given = "\n".join(text for text in texts if "is_allowed(reason" not in text)
    listed = ALLOWED.union(*WITHOUT.values())
    assert [reason for reason in listed if reason not in given] == []
