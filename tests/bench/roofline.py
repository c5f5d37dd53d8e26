"""What scores of many rows can take at best on an H200, from the code that Triton compiles.

Of a chunk: the product at the larger of its reading and its multiplying; the fold at the larger of
its reading from L2 and of issuing its instructions, all of which are counted as if every tile ran
them (a new best is in fact searched for in few tiles, and greedy rows skip the noise). Modelled.

Run: python -m tests.bench.roofline [--vocabulary 151936] [--width 4096]
"""

import argparse
import tempfile
from pathlib import Path

from kernels.score import logits_kernel as score_logits_kernel
from kernels.score.chunks import MAX_ROWS, column_chunks
from tests.bench.harness import print_table
from tests.kernels.ahead_of_time import compile_kernel

# An H200: bytes/s of memory and of L2, 16-bit operations/s, warp instructions/s.
MEMORY_RATE = 4.3e12
L2_RATE = 5.5e12
MATMUL_RATE = 7.9e14
ISSUE_RATE = 132 * 4 * 1.83e9
CAPABILITY = 90
ROWS = (64, 256, 1024, MAX_ROWS)
TENSORS = {
    "logits": "fp32",
    "temperature": "fp32",
    "keys": "i32",
    "given": "i64",
    "numbers": "fp32",
    "tokens": "i32",
}


def fold_instructions() -> float:
    """Warp instructions for 32 logits, at most."""
    block, warps = score_logits_kernel.TUNED
    kernel = score_logits_kernel._fold_logits_kernel
    with tempfile.TemporaryDirectory() as folder:
        code = compile_kernel(
            kernel, TENSORS, {"BLOCK": block}, CAPABILITY, warps=warps, path=Path(folder)
        )
    return len(code.instructions) / (block / (32 * warps))


def product_time(rows: int, columns: int, width: int) -> float:
    """Seconds of a product of a chunk, its float32 result written to L2."""
    multiplied = 2 * rows * columns * width / MATMUL_RATE
    read = 2 * width * (rows + columns) / MEMORY_RATE
    return max(multiplied, read, 4 * rows * columns / L2_RATE)


def fold_time(rows: int, columns: int, instructions: float) -> float:
    """Seconds of a fold of a chunk that lies in L2."""
    logits = rows * columns
    return max(4 * logits / L2_RATE, logits / 32 * instructions / ISSUE_RATE)


def score_row(rows: int, vocabulary: int, width: int, instructions: float) -> dict[str, object]:
    """One row of the table."""
    chunks = [chunk.stop - chunk.start for chunk in column_chunks(rows, vocabulary)]
    product = sum(product_time(rows, columns, width) for columns in chunks)
    fold = sum(fold_time(rows, columns, instructions) for columns in chunks)
    return {
        "rows": rows,
        "chunks": len(chunks),
        "product us": 1e6 * product,
        "fold us at most": 1e6 * fold,
        "over the product": 1 + fold / product,
    }


def main() -> None:
    """Print the model's answer for several numbers of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=4096)
    arguments = parser.parse_args()
    instructions = fold_instructions()
    sizes = (arguments.vocabulary, arguments.width, instructions)
    print_table([score_row(rows, *sizes) for rows in ROWS])


if __name__ == "__main__":
    main()
