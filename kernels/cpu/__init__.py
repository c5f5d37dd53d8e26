"""What kernels run on a CPU with: its instructions, and our own kernels compiled for them.

Others use `native_kernels` (None where there is no compiler), and `cpu_features`.
"""

from kernels.cpu.features import cpu_features
from kernels.cpu.library import (
    HeadLayout,
    NativeBatch,
    NativeKernels,
    NativeMatrix,
    native_kernels,
    runs_native,
)

__all__ = [
    "HeadLayout",
    "NativeBatch",
    "NativeKernels",
    "NativeMatrix",
    "cpu_features",
    "native_kernels",
    "runs_native",
]
