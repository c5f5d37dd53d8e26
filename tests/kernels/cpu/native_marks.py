"""The mark of tests that need our own CPU kernels."""

import os

import pytest

from kernels.cpu import native_kernels

_IS_OFF = os.environ.get("ESTUARY_CPU_KERNELS") == "0"
needs_native = pytest.mark.skipif(
    native_kernels() is None,
    reason="own CPU kernels are switched off" if _IS_OFF else "needs a C++ compiler",
)
