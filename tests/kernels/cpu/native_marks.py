"""The mark of tests that need our own CPU kernels."""

import pytest

from kernels.cpu import native_kernels

needs_native = pytest.mark.skipif(native_kernels() is None, reason="needs a C++ compiler")
