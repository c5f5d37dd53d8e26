"""The Dockerfile's steps, rehearsed in a fresh environment: what they build serves and stops."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from server.serve import listen
from server.settings import load_settings
from tests.end_to_end.conftest import WAITS_S, write_checkpoint
from tests.server.rehearsal import Rehearsal, borrow_packages, read_stages

ROOT = Path(__file__).parents[2]
# Everything from the package index, as an image is built: minutes and gigabytes, so by hand.
FROM_THE_INDEX = pytest.param(True, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])


def _files_outside_the_cache(root):
    return {path: path.stat().st_mtime_ns for path in (root / "opt").rglob("*")}


@pytest.fixture(scope="module", params=[False, FROM_THE_INDEX], ids=["borrowed", "from the index"])
def rehearsed(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("image")
    (root / "tmp").mkdir()

    def skips(step):
        fetches = "pip install" in step and "--no-deps" not in step
        if fetches and not request.param:
            borrow_packages(root / "opt" / "estuary")
        return fetches and not request.param

    arguments = {"TORCH_INDEX": os.environ.get("TORCH_INDEX", "")}
    rehearsal = Rehearsal(root, ROOT, skips=skips, arguments=arguments)
    return rehearsal, rehearsal.build("cpu")


def _wait_until_ready(address, process):
    deadline_s = time.monotonic() + WAITS_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, process.communicate()[0]
        try:
            if httpx.get(f"{address}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("not ready in time")


def _free_port():
    with listen(load_settings({"port": 0})) as bound:
        return bound.getsockname()[1]


def test_what_is_built_serves_is_healthy_writes_nothing_and_stops(rehearsed, golden, tmp_path):
    rehearsal, image = rehearsed
    before = _files_outside_the_cache(rehearsal.root)
    port, folder = _free_port(), write_checkpoint(golden, "llama", tmp_path)
    address = f"http://127.0.0.1:{port}"
    own = {"ESTUARY_PORT": str(port), "ESTUARY_HOST": "127.0.0.1", "ESTUARY_DRAIN_GRACE": "0",
           "ESTUARY_KV_CACHE_MEMORY": "8MiB", "ESTUARY_DEVICE": "cpu"}  # fmt: skip
    process = rehearsal.process(image, [*image.entrypoint, *image.command, str(folder)], **own)
    try:
        _wait_until_ready(address, process)
        answer = httpx.post(f"{address}/v1/completions", json={"prompt": "To be", "max_tokens": 4})
        page = httpx.get(f"{address}/")
        probe = rehearsal.process(image, image.healthcheck, **own)
        probe_said, _ = probe.communicate(timeout=WAITS_S)
        process.send_signal(signal.SIGTERM)
        log, _ = process.communicate(timeout=WAITS_S)
    finally:
        process.kill()
    assert answer.json()["usage"]["completion_tokens"] == 4
    assert "Estuary playground" in page.text
    assert probe.returncode == 0, probe_said
    assert process.returncode == 0, log
    assert _files_outside_the_cache(rehearsal.root) == before


def test_a_container_that_does_not_answer_is_unhealthy(rehearsed):
    rehearsal, image = rehearsed
    probe = rehearsal.process(image, image.healthcheck, ESTUARY_PORT=str(_free_port()))
    probe.communicate(timeout=WAITS_S)
    assert probe.returncode == 1


def test_what_models_and_pages_need_is_in_the_image(rehearsed):
    rehearsal, _ = rehearsed
    (site,) = (rehearsal.root / "opt" / "estuary").glob("lib/python3*/site-packages")
    tracked = [
        path.relative_to(ROOT)
        for package in ("kernels", "weights", "sampler", "server")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".pyo")
    ]
    assert len(tracked) > 150
    assert [str(path) for path in tracked if not (site / path).is_file()] == []


def test_only_steps_that_need_rights_or_the_index_were_left_out(rehearsed):
    rehearsal, image = rehearsed
    assert image.user == "10001:0"
    words = {step.split()[0] for step in rehearsal.left_out}
    assert words <= {"useradd", "chown", "env", "pip", "apt-get"}


def test_both_targets_are_built_of_the_same_steps():
    stages = read_stages(ROOT / "Dockerfile")
    assert stages["build-cpu"][1:] == stages["build-cuda"][1:]
    assert list(stages)[-1] == "cuda"
