"""Compile a kernel for a GPU that is not there, and read what the machine code uses."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Shared memory that one program may use, in bytes, by compute capability.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TENSOR_CORES = {80: "mma.sync", 90: "wgmma", 100: "tcgen05"}
CAPABILITIES = tuple(SHARED_LIMIT)
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", re.M)
_WAIT = re.compile(r"cp\.async\.wait_group\s+(\d+)")
TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"


@dataclass(frozen=True)
class MachineCode:
    """What a compiled kernel uses.

    shared: bytes per program; stack: bytes of local memory per thread; spills: instructions that
    store registers to it or load them back; registers: per thread; instructions: names of all
    machine instructions in their order, such as "MUFU.LG2"
    """

    shared: int
    stack: int
    spills: int
    registers: int
    ptx: str
    instructions: tuple[str, ...]

    @property
    def copies_in_flight(self) -> int:
        """The most groups of copies to shared memory that some wait leaves under way."""
        return max((int(left) for left in _WAIT.findall(self.ptx)), default=0)

    def count(self, name: str) -> int:
        """How many instructions have this in their name."""
        return sum(name in instruction for instruction in self.instructions)


def signature_of(kernel, tensors, constants, floats=()):
    """Types of all parameters: tensors by their element, `_ptr` or not; other numbers are i32."""
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name.endswith("_ptr"):
            types[name] = "*" + tensors[name.removesuffix("_ptr")]
        else:
            types[name] = "fp32" if name in floats else "i32"
    return types


def compile_kernel(kernel, tensors, constants, capability, *, warps, stages=2, floats=(), path):
    """Machine code of a kernel; pointers are 16-byte aligned, as torch hands them out."""
    signature = signature_of(kernel, tensors, constants, floats)
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True},
    )
    cubin = path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    numbers = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", _read(cubin, "--dump-resource-usage")))
    sass = _read(cubin, "--dump-sass")
    return MachineCode(
        shared=compiled.metadata.shared,
        stack=int(numbers["STACK"]) + int(numbers["LOCAL"]),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        registers=int(numbers["REG"]),
        ptx=compiled.asm["ptx"],
        instructions=tuple(_INSTRUCTION.findall(sass)),
    )


def _read(cubin, what):
    command = [str(TOOLS / "cuobjdump"), what, str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
