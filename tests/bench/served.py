"""Servers that a benchmark starts: on a free loopback port, their memory, and their end."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

START_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Served:
    """A running server; model is the name that requests ask for."""

    url: str
    model: str
    process: subprocess.Popen[bytes]

    def proportional_mb(self) -> float:
        """Memory of the server's process and those it started, shared pages counted in parts."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return sum(proportional_mb(pid) for pid in (self.process.pid, *map(int, children.split())))


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving_ours(*flags: str) -> Iterator[Served]:
    """Our server with the default model or whatever the flags say."""
    port = free_port()
    command = [sys.executable, "-m", "server", "serve", "--port", str(port)]
    command += ["--log-level", "warning", "--drain-grace", "0", *flags]
    with _running(command, f"http://127.0.0.1:{port}", ready="/ready") as served:
        yield served


@contextmanager
def serving_llama_cpp(python: str, model: Path, *, threads: int) -> Iterator[Served]:
    """llama.cpp's own server, with continuous batching."""
    port = free_port()
    script = Path(__file__).with_name("peer_llama_cpp.py")
    command = [python, str(script), str(model), "--port", str(port), "--threads", str(threads)]
    with _running(command, f"http://127.0.0.1:{port}", ready="/v1/models") as served:
        yield served


@contextmanager
def serving_vllm(python: str, model: Path, folder: Path, *, threads: int) -> Iterator[Served]:
    """vLLM on a CPU in bfloat16; its first start compiles for minutes.

    folder: where its weights are put, once
    """
    port = free_port()
    script = Path(__file__).with_name("peer_vllm.py")
    subprocess.run([python, str(script), str(model), str(folder)], check=True)
    command = [str(Path(python).with_name("vllm")), "serve", str(folder), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", "bfloat16", "--max-model-len", "2048"]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
    }
    url = f"http://127.0.0.1:{port}"
    with _running(command, url, ready="/health", environment=environment) as served:
        yield served


@contextmanager
def _running(
    command: list[str], url: str, *, ready: str, environment: dict[str, str] | None = None
) -> Iterator[Served]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        wait_until_ready(process, url + ready)
        models = httpx.get(f"{url}/v1/models").json()["data"]
        yield Served(url, models[0]["id"], process)
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(process: "subprocess.Popen[bytes] | subprocess.Popen[str]", url: str) -> None:
    """Return when the server answers; raises RuntimeError when it ends or takes too long."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the server was not ready after {START_TIMEOUT_S} s")


def proportional_mb(pid: int) -> float:
    """Proportional set size of a process (PSS)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0
