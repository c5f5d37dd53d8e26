"""Which instructions this CPU has, as far as the libraries underneath were told to use them.

`ONEDNN_MAX_CPU_ISA` and `ATEN_CPU_CAPABILITY` limit oneDNN's and PyTorch's own instructions; what
is chosen here keeps to the same limits, so that a machine can stand for a smaller one.
"""

import platform
from functools import cache
from pathlib import Path

import torch

from kernels.dispatch import onednn_limit

_CPU_INFO = Path("/proc/cpuinfo")
_AVX2 = frozenset({"avx2", "fma"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_VNNI = _AVX512 | {"avx512_vnni"}
_KNOWN = _VNNI | {"avx_vnni", "amx_int8"}
# What each limit of oneDNN's leaves; names that are not here, such as ALL, limit nothing.
_ONEDNN_LIMITS: dict[str, frozenset[str]] = {
    "SSE41": frozenset(),
    "AVX": frozenset(),
    "AVX2": _AVX2,
    "AVX2_VNNI": _AVX2 | {"avx_vnni"},
    "AVX2_VNNI_2": _AVX2 | {"avx_vnni"},
    "AVX512_CORE": _AVX512,
    "AVX512_CORE_VNNI": _VNNI,
    "AVX512_CORE_BF16": _VNNI,
    "AVX512_CORE_FP16": _VNNI,
    "AVX10_1_512": _VNNI | {"avx_vnni"},
}
_ATEN_LIMITS: dict[str, frozenset[str]] = {
    "DEFAULT": frozenset(),
    "AVX2": _AVX2 | {"avx_vnni"},
}


@cache
def cpu_features() -> frozenset[str]:
    """The instructions that products and kernels are chosen by, by their names in /proc/cpuinfo."""
    features = _KNOWN & _listed()
    features &= _ONEDNN_LIMITS.get(onednn_limit(), _KNOWN)
    return frozenset(features & _ATEN_LIMITS.get(torch.backends.cpu.get_cpu_capability(), _KNOWN))


def is_x86() -> bool:
    """Whether this is an x86-64 processor."""
    return platform.machine() in ("x86_64", "AMD64")


def _listed() -> frozenset[str]:
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split(":")[-1].split())
