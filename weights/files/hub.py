"""Checkpoints named by a repository id, fetched from the hub and pinned to one commit."""

import errno
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub_errors

from weights.errors import FetchError

# Weights, configs and text side; never code, never pickled weights.
_WANTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "adapter_config.json",
    "*/adapter_config.json",
)
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_repo_id(name: str) -> bool:
    """Whether a name looks like `owner/name` and is no path that exists."""
    return _REPO_ID.fullmatch(name) is not None and not Path(name).exists()


def fetch_repo(
    repo_id: str, *, cache_dir: Path, revision: str | None = None, endpoint: str | None = None
) -> Path:
    """Bring a repository's checkpoint into the cache and return its folder.

    revision: a branch, tag or commit; it is resolved to a commit once, and all files are of that
              commit. A commit that is already in the cache needs no network.
    endpoint: a mirror of the hub, or None for the hub itself

    Raises FetchError when the hub cannot be reached, has no such repository, the repository has
    no safetensors, or the disk is full.
    """
    try:
        cached = _cached(repo_id, cache_dir, revision)
        if cached is not None:
            return cached
        info = huggingface_hub.HfApi(endpoint=endpoint).model_info(repo_id, revision=revision)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        if not any(name.endswith(".safetensors") for name in names):
            raise FetchError(
                f"{repo_id} holds no safetensors; pickled weights are not opened, because they "
                "can run code"
            )
        folder = huggingface_hub.snapshot_download(
            repo_id,
            revision=info.sha,
            cache_dir=cache_dir,
            allow_patterns=list(_WANTED),
            endpoint=endpoint,
        )
    except FetchError:
        raise
    except hub_errors.HfHubHTTPError as error:
        raise FetchError(f"{repo_id} cannot be fetched: {_first_line(error)}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise FetchError(f"there is no room left in {cache_dir} for {repo_id}") from error
        raise FetchError(
            f"{repo_id} cannot be fetched; is there a network? ({_first_line(error)})"
        ) from error
    return Path(folder)


def _cached(repo_id: str, cache_dir: Path, revision: str | None) -> Path | None:
    """The folder of a full commit id that has been fetched whole."""
    if revision is None or re.fullmatch(r"[0-9a-f]{40}", revision) is None:
        return None
    try:
        folder = huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            cache_dir=cache_dir,
            allow_patterns=list(_WANTED),
            local_files_only=True,
        )
    except hub_errors.LocalEntryNotFoundError:
        return None
    path = Path(folder)
    return path if any(path.glob("*.safetensors")) else None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
