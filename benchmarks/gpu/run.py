"""Measures the GPU engine against what its machine could do at best.

    python benchmarks/gpu/run.py --out DIR                   everything, in under 8 minutes on an H200
    python benchmarks/gpu/run.py --out DIR attention engine  parts by name
    python benchmarks/gpu/run.py --out DIR --device cpu --quick    that it runs, with tiny shapes

Correctness comes first and stops the run if it fails. The table comes last, and goes to DIR/gpu.md; DIR/gpu.json has
everything. It runs from a checkout with torch, triton and numpy: no installation is needed, but the native extension
(`server/anaphora/_native.abi3.so`, or an installed wheel).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# Last, so that an installed wheel, which has the native extension, comes before the checkout.
sys.path += [str(ROOT / "server"), str(ROOT / "kernels"), str(ROOT / "benchmarks")]

import attention
import correctness
import end_to_end
import engine
import torch
from measure import HEADER, Bench, cells, measure_ceilings
from report import machine, table
from shapes import Shape

PARTS = {
    "correctness": correctness.run,
    "attention": attention.run,
    "engine": engine.run,
    "end_to_end": end_to_end.run,
    "engine_fp8": engine.run_fp8,
}


def main() -> None:
    """Runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--out", type=Path, required=True, help="where gpu.json and gpu.md go")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", default="Llama-3.1-8B", help="a directory of benchmarks/configs")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: whether it runs, not how fast")
    flags = parser.parse_args()
    if unknown := set(flags.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if flags.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; try --device cpu --quick")
    began = time.perf_counter()
    device = torch.device(flags.device)
    bench = Bench(device, flags.quick, torch.bfloat16 if flags.device == "cuda" else torch.float32)
    flags.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        shape = Shape.named(flags.model, Path(directory), quick=flags.quick)
        measure_ceilings(bench)
        try:
            for name in flags.parts or PARTS:
                PARTS[name](bench, shape)
        finally:  # what was measured before an error is not lost
            save(bench, flags, time.perf_counter() - began)


def save(bench: Bench, flags: argparse.Namespace, seconds: float) -> None:
    """Prints the table, and writes it."""
    card = torch.cuda.get_device_name(bench.device) if bench.is_cuda else "CPU"
    head = (
        f"{flags.model}{' in tiny shapes' if flags.quick else ''}, {bench.dtype}, on {card}, torch {torch.__version__}"
    )
    lines = table(HEADER, [cells(row) for row in bench.rows])
    record = {
        "card": card,
        "model": flags.model,
        "quick": flags.quick,
        "torch": torch.__version__,
        "machine": machine(),
        "seconds": round(seconds, 1),
        "copy_bytes_per_second": bench.copy_rate,
        "product_operations_per_second": bench.product_rate,
        "rows": [row.as_json() for row in bench.rows],
    }
    (flags.out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n")
    (flags.out / "gpu.md").write_text(f"# The GPU engine\n\n{head}\n\n{lines}\n")
    print(f"\n{head}; {seconds:.0f} s\n\n{lines}")


if __name__ == "__main__":
    main()
