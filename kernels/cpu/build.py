"""Compiles `cpu_kernels.cpp` for this machine, once: the result stays in the user's cache folder.

A compiler is not required: without one, and where compiling fails, operations run as PyTorch
calls. An image may bring the compiled file: it is looked for beside the source first.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from kernels.cpu.features import cpu_features, is_x86
from kernels.dispatch import user_cache_folder

SOURCE = Path(__file__).with_name("cpu_kernels.cpp")
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math", "-Wno-psabi",
)  # fmt: skip
# The first line whose features this CPU has says for what to compile.
_TARGETS: tuple[tuple[str, frozenset[str], tuple[str, ...]], ...] = (
    (
        "avx512_vnni",
        frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}),
        ("-march=x86-64-v4", "-mavx512vnni"),
    ),
    (
        "avx512",
        frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
        ("-march=x86-64-v4",),
    ),
    ("avx2_vnni", frozenset({"avx2", "fma", "avx_vnni"}), ("-march=x86-64-v3", "-mavxvnni")),
    ("avx2", frozenset({"avx2", "fma"}), ("-march=x86-64-v3",)),
    ("baseline", frozenset(), ()),
)
_TIMEOUT_S = 120.0

log = logging.getLogger(__name__)


class CompilerError(RuntimeError):
    """The kernels cannot be compiled here; says why in one sentence."""


def target_name() -> str:
    """The instructions that kernels are compiled for on this machine."""
    return _target()[0]


def built_library(*, folder: Path | None = None) -> Path:
    """The compiled kernels for this machine; compiles them when they are not there yet.

    folder: where compiled files are kept; None for the user's cache folder

    Raises CompilerError when there is no compiler, it fails, or the folder cannot be written.
    """
    name, flags = _target()
    shipped = SOURCE.with_name(_file_name(name, flags))
    if shipped.exists():
        return shipped
    folder = user_cache_folder() / "kernels" if folder is None else folder
    library = folder / shipped.name
    if not library.exists():
        _compile(library, flags)
    return library


def build_all(folder: Path) -> list[Path]:
    """Compile for every kind of processor of this architecture, as an image does.

    Raises CompilerError like `built_library`.
    """
    targets = [(name, flags) for name, _, flags in _TARGETS] if is_x86() else [_target()]
    made = []
    for name, flags in targets:
        library = folder / _file_name(name, flags)
        _compile(library, flags)
        made.append(library)
    return made


def _file_name(name: str, flags: tuple[str, ...]) -> str:
    """Changes with the source and with how it is compiled."""
    content = SOURCE.read_bytes() + " ".join((*_FLAGS, *flags)).encode()
    return f"cpu_kernels-{name}-{hashlib.sha256(content).hexdigest()[:16]}.so"


def _target() -> tuple[str, tuple[str, ...]]:
    if not is_x86():
        return "native", ("-mcpu=native",)
    features = cpu_features()
    return next((name, flags) for name, needed, flags in _TARGETS if needed <= features)


def _compile(library: Path, flags: tuple[str, ...]) -> None:
    compiler = next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise CompilerError("there is no C++ compiler")
    started_s = time.monotonic()
    try:
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            # Made elsewhere and moved, so that no other process loads half a file.
            made = Path(scratch) / library.name
            command = [compiler, *_FLAGS, *flags, "-o", str(made), str(SOURCE)]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
            )
            if done.returncode:
                first_line = (done.stderr.strip() or "no message").splitlines()[0]
                raise CompilerError(f"{compiler} failed: {first_line}")
            os.replace(made, library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerError(f"compiling the CPU kernels failed: {error}") from error
    log.info("compiled the CPU kernels in %.1f s", time.monotonic() - started_s)


def main() -> None:
    """Compile for every kind of processor into the folder of the source."""
    build_all(SOURCE.parent)


if __name__ == "__main__":
    main()
