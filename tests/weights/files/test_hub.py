"""Fetching a repository from a hub that runs inside the test."""

import errno
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from weights import FetchError
from weights.files.hub import fetch_repo, is_repo_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "modeling_code.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
}


class Hub(BaseHTTPRequestHandler):
    """Answers what the client asks of one repository."""

    def do_GET(self):
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/owner/name/tree/"):
            self.answer(json.dumps([self.entry(name) for name in self.server.files]).encode())
        elif path.startswith("/api/models/owner/name"):
            siblings = [{"rfilename": name} for name in self.server.files]
            info = {"id": "owner/name", "sha": COMMIT, "siblings": siblings, "tags": []}
            self.answer(json.dumps(info).encode())
        elif path.startswith(f"/owner/name/resolve/{COMMIT}/"):
            self.answer(self.server.files[path.rsplit("/", 1)[1]])
        else:
            self.send_error(404)

    do_HEAD = do_GET  # noqa: N815 -- the name the base class asks for

    def entry(self, name):
        content = self.server.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": digest(content)}

    def answer(self, content):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{digest(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        """Keep the test quiet."""


def digest(content):
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.asked = dict(FILES), []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(hub, cache, **options):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    return fetch_repo("owner/name", cache_dir=cache, endpoint=endpoint, **options)


def test_weights_and_text_side_are_fetched_and_code_is_not(hub, tmp_path):
    folder = fetch(hub, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_all_files_are_of_one_commit(hub, tmp_path):
    folder = fetch(hub, tmp_path, revision="main")
    assert folder.name == COMMIT
    fetched = [path for path in hub.asked if "/resolve/" in path]
    assert fetched
    assert all(f"/resolve/{COMMIT}/" in path for path in fetched)


def test_a_commit_that_is_there_needs_no_network(hub, tmp_path):
    folder = fetch(hub, tmp_path)
    hub.asked.clear()
    assert fetch(hub, tmp_path, revision=COMMIT) == folder
    assert hub.asked == []


def test_a_repository_of_pickles_is_refused(hub, tmp_path):
    del hub.files["model.safetensors"]
    with pytest.raises(FetchError, match="no safetensors; pickled"):
        fetch(hub, tmp_path)


def test_a_repository_that_is_not_there_is_one_sentence(hub, tmp_path):
    with pytest.raises(FetchError, match="owner/other cannot be fetched") as error:
        fetch_repo(
            "owner/other", cache_dir=tmp_path, endpoint=f"http://127.0.0.1:{hub.server_port}"
        )
    assert "\n" not in str(error.value)


def test_a_full_disk_is_named(hub, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("huggingface_hub.snapshot_download", full)
        with pytest.raises(FetchError, match="no room left in"):
            fetch(hub, tmp_path)
    assert (fetch(hub, tmp_path) / "model.safetensors").read_bytes() == b"weights"


def test_a_hub_that_does_not_answer_is_one_sentence(tmp_path):
    with pytest.raises(FetchError, match="owner/name cannot be fetched") as error:
        # Nothing listens on the discard port.
        fetch_repo("owner/name", cache_dir=tmp_path, endpoint="http://127.0.0.1:9")
    assert "\n" not in str(error.value)


def test_repo_ids_are_told_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "model").mkdir()
    assert is_repo_id("owner/name-1.0")
    assert not is_repo_id("there/model")
    assert not is_repo_id("/absolute/path")
    assert not is_repo_id("name")
