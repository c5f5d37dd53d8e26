"""The official Node client, unmodified.

It needs node, and its package beside the script (`npm ci` in `tests/server/node`) or where
`NODE_PATH` points.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.test_serve import WAITS_S, running_server

SCRIPT = Path(__file__).parent / "node" / "client.mjs"
NODE = shutil.which("node")
PACKAGES = Path(os.environ.get("NODE_PATH", SCRIPT.parent / "node_modules")) / "openai"

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(
        NODE is None or not PACKAGES.is_dir(), reason="needs node and its openai package"
    ),
]


def test_chat_streams_completions_responses_and_errors(tmp_path):
    # Modules are looked for beside the script, so it is put beside the package.
    (tmp_path / "node_modules").symlink_to(PACKAGES.parent.resolve())
    script = shutil.copy(SCRIPT, tmp_path)
    with running_server() as (_, address):
        ended = subprocess.run(
            [NODE, script, address], capture_output=True, text=True, timeout=WAITS_S, check=False
        )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {
        "whole": ["hello", "hello"],
        "logprobs": "hello",
        "streamed": "hello",
        "tokens": 6,
        "helped": "hello",
        "completed": "hello",
        "responded": "hello",
        "held": {"word": "hello"},
        "called": ["greet", {"word": "hello"}, "tool_calls"],
        "error": [404, "model_not_found", "model"],
    }
