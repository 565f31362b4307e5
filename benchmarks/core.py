"""What the router's core costs: the prefix index and the scheduler, at 200,000 tokens and at 1,000,000 blocks.

    python benchmarks/core.py

Runs the criterion benches of `router/core` and the comparison with `kv-index` (`benchmarks/prefix_index`, a crate of
its own), and writes both down. Times are microseconds. "of its floor" relates a figure to what it cannot be below: a
match of a prompt to one comparison of as many tokens; a decode step at 200,000 tokens of context to one at 1,000.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from report import save, table

ROOT = Path(__file__).parent.parent
CRITERION = ROOT / "target/criterion"
FLOORS = {
    "find 200,000 tokens": "memcmp 200,000 tokens (the floor)",
    "find 200,000 tokens, 312 branches": "memcmp 200,000 tokens (the floor)",
    "decode step/plan: 1 rows, 200000 tokens of context": "decode step/plan: 1 rows, 1000 tokens of context",
    "decode step/commit: 1 rows, 200000 tokens of context": "decode step/commit: 1 rows, 1000 tokens of context",
}


def criterion() -> dict[str, tuple[float, float, float]]:
    """Median of each bench and its confidence interval of 95 %, in microseconds."""
    before = {path: path.stat().st_mtime for path in CRITERION.rglob("new/estimates.json")}
    benches = ("--bench", "radix", "--bench", "plan")
    subprocess.run(["cargo", "bench", "--quiet", "-p", "anaphora-core", *benches], cwd=ROOT, check=True)
    figures = {}
    for path in CRITERION.rglob("new/estimates.json"):
        if path.stat().st_mtime == before.get(path):
            continue  # of a bench that is no more
        name = json.loads((path.parent / "benchmark.json").read_text())["full_id"]
        median = json.loads(path.read_text())["median"]
        interval = median["confidence_interval"]
        values = (median["point_estimate"], interval["lower_bound"], interval["upper_bound"])
        figures[name] = (values[0] / 1e3, values[1] / 1e3, values[2] / 1e3)
    return figures


def beside_kv_index() -> str:
    """The table that the comparison prints."""
    manifest = ROOT / "benchmarks/prefix_index/Cargo.toml"
    command = ["cargo", "run", "--release", "--quiet", "--manifest-path", str(manifest)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Two tables."""
    figures = criterion()
    rows = []
    for name, (median, low, high) in sorted(figures.items()):
        floor = FLOORS.get(name)
        ratio = f"{median / figures[floor][0]:.2f}" if floor else ""
        rows.append([name, f"{median:.2f}", f"{low:.2f} to {high:.2f}", ratio])
    peers = beside_kv_index()
    tables = f"{table(['', 'median us', '95 % interval', 'of its floor'], rows)}\n\n{peers}"
    print(tables)
    print(save("core", {"criterion_us": figures, "beside_kv_index": peers.splitlines()}, tables))


if __name__ == "__main__":
    main()
