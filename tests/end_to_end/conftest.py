"""Servers as an operator starts them, over tiny checkpoints with a tokenizer of ASCII bytes."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

WAITS_S = 60.0
NUM_TOKENS = 128
TEMPLATE = "{% for message in messages %}{{ message.role[0] }}:{{ message.content }};{% endfor %}"


@dataclass
class RunningServer:
    """A server process and a client of it."""

    process: subprocess.Popen
    address: str
    client: httpx.Client

    def complete(self, prompt, **fields):
        answer = self.client.post("/v1/completions", json={"prompt": prompt} | fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def stream(self, prompt, **fields):
        """The chunks of a streamed completion."""
        body = {"prompt": prompt, "stream": True} | fields
        with self.client.stream("POST", "/v1/completions", json=body) as answer:
            lines = [line for line in answer.iter_lines() if line.startswith("data: {")]
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    def metric(self, name):
        """The sum of a metric's samples."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def wait_until_idle(self):
        deadline_s = time.monotonic() + WAITS_S
        while self.metric("estuary_requests_running") or self.metric("estuary_pages_used"):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)


def write_checkpoint(golden, family, folder):
    """A golden checkpoint with the text side it does not bring."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(golden / family / name, folder / name)
    printable = [*range(0x21, 0x7F)]
    others = [
        byte for byte in range(256) if (byte not in printable and byte < 0xA1) or byte == 0xAD
    ]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(0x100 + index) for index, byte in enumerate(others)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={letters[byte]: byte for byte in range(NUM_TOKENS)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    (folder / "tokenizer.json").write_text(backend.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


@contextmanager
def serving(model, *flags):
    command = [sys.executable, "-m", "server", "serve", str(model), "--port", "0",
               "--device", "cpu", "--dtype", "float32", "--num-threads", "1",
               "--kv-cache-memory", "8MiB", "--max-num-seqs", "8",
               "--drain-grace", "0", *flags]  # fmt: skip
    # A file and not a pipe, which nobody would empty.
    with tempfile.TemporaryFile("w+") as log:
        yield from serving_by(command, log)


def serving_by(command, log):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        said = process.stdout.readline()
        if not said.startswith("Estuary is ready at "):
            process.wait(WAITS_S)
            log.seek(0)
            raise RuntimeError(log.read())
        address = said.split()[-1]
        with httpx.Client(base_url=address, timeout=WAITS_S) as client:
            while not _is_ready(client):
                time.sleep(0.02)
            yield RunningServer(process, address, client)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=WAITS_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _is_ready(client):
    try:
        return client.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def llama(golden, tmp_path_factory):
    with serving(write_checkpoint(golden, "llama", tmp_path_factory.mktemp("llama"))) as server:
        yield server


@pytest.fixture(scope="session")
def hybrid(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid")
    with serving(write_checkpoint(golden, "nemotron_labs_diffusion", folder)) as server:
        yield server
