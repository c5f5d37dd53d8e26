"""Fixtures that every test gets: repeatable draws, poisoned memory, the device; skips."""

import os
from pathlib import Path

import pytest
import torch

# Loads the profile of property tests, too.
from tests import examples as examples

# Hooks of pytest: found here by their names.
from tests.skips import pytest_make_collect_report as pytest_make_collect_report
from tests.skips import pytest_runtest_makereport as pytest_runtest_makereport

GOLDEN = Path(__file__).parent / "golden"
HAS_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(items):
    if HAS_GPU or INTERPRETED:
        return
    skip = pytest.mark.skip(reason="launches a kernel: needs a GPU or TRITON_INTERPRET=1")
    for item in items:
        if item.get_closest_marker("kernel"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture(scope="session")
def golden():
    return GOLDEN


@pytest.fixture(autouse=True)
def repeatable():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Hand out poison for uninitialised memory, so that reading it fails a test every time."""
    for allocate in (torch.empty, torch.empty_like):

        def poisoned(*args, allocate=allocate, **kwargs):
            memory = allocate(*args, **kwargs)
            return memory.fill_(float("nan") if memory.is_floating_point() else -1)

        monkeypatch.setattr(torch, allocate.__name__, poisoned)
