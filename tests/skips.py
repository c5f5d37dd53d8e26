"""Which skips are right where everything but a GPU should be there: any other fails the run.

On a developer's machine a test whose tool is missing is skipped. In CI (`CI=true`) that would hide
it for ever, so that a skip fails there unless its reason is listed here.
"""

import os

import pytest

# What needs a GPU, or is about another path than the one that this run takes.
ALLOWED = frozenset(
    {
        "launches a kernel: needs a GPU or TRITON_INTERPRET=1",
        "needs a GPU",
        "needs a CUDA GPU",
        "needs 10 GiB of GPU memory",
        "interpreted kernels are not compiled",
        "speaks of the CPU path",
        "would measure",
        "own CPU kernels are switched off",
    }
)
# What `.ci/install` names in `TESTS_WITHOUT` when it cannot install it (no network, no rights), and
# the reasons for which tests of that are skipped.
WITHOUT = {
    "chromium": frozenset({"needs chromium"}),
    "prometheus": frozenset({"needs prometheus", "needs promtool"}),
    "node": frozenset({"needs node and its openai package"}),
}


def is_allowed(reason, missing):
    """Whether a skip for `reason` is right where the tools `missing` could not be installed."""
    reason = reason.removeprefix("Skipped: ")
    return reason in ALLOWED or any(reason in WITHOUT[name] for name in missing)


def _refuse_skip(report):
    """Turn a report of a skip that is not allowed into one of a failure."""
    if not report.skipped or hasattr(report, "wasxfail") or os.environ.get("CI") != "true":
        return report
    path, line, reason = report.longrepr
    if not is_allowed(reason, os.environ.get("TESTS_WITHOUT", "").split()):
        report.outcome = "failed"
        report.longrepr = f"{path}:{line}: {reason} (in CI this test may not be skipped)"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return _refuse_skip((yield))
