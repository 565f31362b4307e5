"""Products with packed weights on a CPU against what the machine can do at all, measured between the same repeats.

    python benchmarks/cpu_products.py

The weights are those of one MLP of SmolLM2-135M (gate and up 3,072 x 576, down 576 x 1,536), as often as it takes to
read memory and not caches. Few rows of activations, a decode, are held against a plain read of as many bytes; many, a
prefill, against torch's best bfloat16 product. Best and median of the repeats; ratios are of the bests.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from anaphora import _native
from anaphora_kernels import linear
from anaphora_kernels.linear.cpu import PackedWeight
from anaphora_kernels.recording import RECORDED_TOKENS, Recording
from floors import HEADER, Floors
from report import save, table

SHAPES = ((3072, 576), (576, 1536))
FORMATS = ("float32", "bfloat16", "int16", "q8_0", "q4_1")
ROWS = (1, 8, 32, 512)
MEMORY_BYTES = 256 << 20
Q4_1 = 3  # GGUF's number of the type


def weights(form: str, num_bytes: int) -> list[PackedWeight]:
    """MLPs of this format, of `num_bytes` at least, and at least one."""
    packed: list[PackedWeight] = []
    while not packed or sum(weight.num_bytes for weight in packed) < num_bytes:
        for rows, columns in SHAPES:
            weight = PackedWeight(rows, columns, "q8_0" if form == "q4_1" else form, keeps_blocks=True)
            if form == "q4_1":
                blocks = torch.randint(0, 60, (rows, columns // 32 * 20), dtype=torch.uint8)
                weight[:].pack_blocks(blocks, Q4_1)
            else:
                weight[:].pack(torch.randn(rows, columns))
            packed.append(weight)
    return packed


def measure(form: str, num_rows: int, floors: Floors, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    packed = weights(form, MEMORY_BYTES if num_rows <= 32 else 0)
    dtype = torch.float32 if form == "float32" else torch.bfloat16
    max_rows = max(num_rows, RECORDED_TOKENS)
    activations = {columns: torch.randn(max_rows, columns).to(dtype) for _, columns in SHAPES}

    def launch() -> None:
        for weight in packed:
            linear(activations[weight.shape[1]][:RECORDED_TOKENS], weight)

    # As in a shard: the calls of a step are recorded once, and cost Python nothing.
    recording = Recording(launch, max_rows)

    operations = 2.0 * num_rows * sum(rows * columns for rows, columns in (weight.shape for weight in packed))
    num_bytes = float(sum(weight.num_bytes for weight in packed))
    return {
        "weights": form,
        "rows": str(num_rows),
        **floors.row(lambda: recording.run(num_rows, []), repeats, operations, num_bytes),
    }


def main() -> None:
    """One table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    _native.set_num_threads(options.num_threads)
    floors = Floors.of_this_machine()
    results = [measure(form, rows, floors, options.repeats) for form in FORMATS for rows in ROWS]
    header = ["weights", "rows", *HEADER]
    body = [[f"{value:.2f}" if isinstance(value, float) else value for value in row.values()] for row in results]
    rendered = table(header, body)
    print(rendered)
    print(save("cpu_products", {"rows": results}, rendered))


if __name__ == "__main__":
    main()
