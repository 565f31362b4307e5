"""How many tokens a second the router can stream: scheduler, detokeniser, JSON, HTTP; with a shard that costs nothing.

    python benchmarks/streaming.py

`streams` connections ask for 512 tokens each with prompts of 32 words, again and again. The figure is tokens per CPU
second of the router, all its threads and its system calls counted; the client's CPU is its own. The floor, measured in
the same run, is a program that makes one write of an event's length per token and does nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from typing import Any

from client import percentile
from fake import ROOT, Router, build, router
from make_model import smollm2_gguf
from report import save, table

LOAD = ROOT / "target/release/examples/load"
FLOOR_WRITES = 500_000


def floor(event_bytes: int) -> float:
    """Tokens per CPU second of one write per token."""
    command = [LOAD, "floor", str(FLOOR_WRITES), str(event_bytes)]
    return FLOOR_WRITES / float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(server: Router, path: str, options: argparse.Namespace) -> dict[str, Any]:
    """One round of all streams."""
    before = server.cpu_seconds()
    counts = (str(options.streams), str(options.rounds), str(options.new_tokens))
    answer = subprocess.run([LOAD, server.address, path, *counts], check=True, stdout=subprocess.PIPE, text=True).stdout
    load = json.loads(answer)
    cpu = server.cpu_seconds() - before
    return {
        "path": path,
        "tokens": load["tokens"],
        "tokens_per_second": load["tokens"] / load["seconds"],
        "tokens_per_core": load["tokens"] / cpu,
        "tokens_per_read": load["tokens"] / load["reads"],
        "bytes_per_token": load["bytes"] / load["tokens"],
        "router_cores": cpu / load["seconds"],
    }


def render(rows: list[dict[str, Any]]) -> str:
    """One line per measurement."""
    body = [
        [
            row["path"],
            f"{row['tokens_per_core']:,.0f}",
            f"{row['floor_per_core']:,.0f}",
            f"{row['tokens_per_core'] / row['floor_per_core']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['router_cores']:.2f}",
            f"{row['tokens_per_read']:.1f}",
            f"{row['bytes_per_token']:.0f}",
        ]
        for row in rows
    ]
    header = ["route", "tok/s per core", "floor", "ratio", "tok/s", "router cores", "tok per read", "bytes per tok"]
    return table(header, body)


def main() -> None:
    """Measures both OpenAI routes, `repeats` times in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=2048, help="connections at a time")
    parser.add_argument("--rounds", type=int, default=2, help="requests per connection")
    parser.add_argument("--new-tokens", type=int, default=512, help="per request")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--name", default="streaming", help="of the result files")
    options = parser.parse_args()
    build("--bin", "anaphora-router", "--example", "load")
    room = options.streams * (options.new_tokens + 256)
    arguments = ("--max-concurrent-requests", str(options.streams), "--max-batch-size", str(options.streams))
    arguments += ("--max-batch-prefill-tokens", "16384", "--max-batch-total-tokens", str(room))
    rows = []
    with router(smollm2_gguf(), *arguments) as server:
        for _ in range(options.repeats):
            for path in ("/v1/completions", "/v1/chat/completions"):
                row = measure(server, path, options)
                rows.append({**row, "floor_per_core": floor(round(row["bytes_per_token"]))})
    print(render(rows))
    median = percentile([row["tokens_per_core"] for row in rows], 0.5)
    print(save(options.name, {"rows": rows, "median_tokens_per_core": median}, render(rows)))


if __name__ == "__main__":
    main()
