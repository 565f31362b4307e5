"""Ours and a peer, side by side in one run: the same load, one server at a time, in turns, and the ratio of the
medians.

    python benchmarks/compare.py --peer transformers

Machines are shared and drift, so the two sides alternate (`--rounds`) and only the ratio is a result; the lowest and
the highest of each side are there to judge the noise by. Both run in the same dtype on the same weights.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from statistics import median
from typing import Any

import long_prompt
import serving
from client import discover
from peers import PEERS, serve
from report import save, table

OURS = "anaphora"


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One round of one server: the whole load, then the long prompts, on a fresh start."""
    with serve(name, options.dtype, options.model) as running:

        async def run() -> dict[str, Any]:
            target = await discover(running.url, running.model)
            result: dict[str, Any] = {"server": name, "ignore_eos": bool(target.extra), "ready_s": running.ready_s}
            if "serving" in options.benchmarks:
                result["serving"] = await serving.measure(target, options)
            if "long_prompt" in options.benchmarks:
                result["long_prompt"] = await long_prompt.measure(target, options)
            return result

        result = asyncio.run(run())
    result["peak_memory_bytes"] = running.peak_memory_bytes
    return result


def figures(rounds: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Each figure's name, with its value in every round of one server."""
    collected: dict[str, list[float]] = {}
    for result in rounds:
        for row in result.get("serving", ()):
            clients = f"{row['concurrency']} client" + ("s" if row["concurrency"] > 1 else "")
            collected.setdefault(f"tok/s, {clients}", []).append(row["output_tokens_per_second"])
            collected.setdefault(f"TTFT p50 ms, {clients}", []).append(row["ttft_p50"] * 1000)
            if row["tpot_p50"] is not None:
                collected.setdefault(f"TPOT p50 ms, {clients}", []).append(row["tpot_p50"] * 1000)
        for row in result.get("long_prompt", ()):
            collected.setdefault("long prompt, cold TTFT ms", []).append(row["cold_ttft"] * 1000)
            collected.setdefault("the same and a little more, warm TTFT ms", []).append(row["warm_ttft"] * 1000)
            collected.setdefault("cold / warm", []).append(row["ratio"])
        collected.setdefault("start to ready, s", []).append(result["ready_s"])
        if result["peak_memory_bytes"]:
            collected.setdefault("peak memory, MB", []).append(result["peak_memory_bytes"] / 1e6)
    return collected


def render(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], peer: str) -> str:
    """Median (lowest to highest) of both, and ours / theirs."""
    left, right = figures(ours), figures(theirs)

    def spread(values: list[float]) -> str:
        return f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"

    rows = [
        [name, spread(left[name]), spread(right[name]), f"{median(left[name]) / median(right[name]):.2f}"]
        for name in left
        if name in right
    ]
    return table(["", OURS, peer, "ours / theirs"], rows)


def main() -> None:
    """Alternates the two servers and writes the comparison down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=sorted(set(PEERS) - {OURS}), default="transformers")
    parser.add_argument("--rounds", type=int, default=2, help="of each server, in turns")
    parser.add_argument("--dtype", default="float32", help="of both")
    parser.add_argument("--model", type=Path, help="a Hugging Face directory; default: SmolLM2-135M-Instruct")
    parser.add_argument(
        "--benchmarks", nargs="+", choices=["serving", "long_prompt"], default=["serving", "long_prompt"]
    )
    parser.add_argument("--name", help="of the result files; default: compare-PEER-DTYPE")
    serving.add_arguments(parser)
    long_prompt.add_arguments(parser)
    options = parser.parse_args()

    rounds: dict[str, list[dict[str, Any]]] = {OURS: [], options.peer: []}
    for number in range(options.rounds):
        for name in (OURS, options.peer):
            result = measure(name, options)
            rounds[name].append(result)
            print(f"\n== round {number + 1}, {name}: ready after {result['ready_s']:.1f} s")
            if "serving" in result:
                print(serving.render(result["serving"]))
            if "long_prompt" in result:
                print(long_prompt.render(result["long_prompt"]), flush=True)
    comparison = render(rounds[OURS], rounds[options.peer], options.peer)
    name = options.name or f"compare-{options.peer}-{options.dtype}"
    print(f"\n{comparison}")
    print(save(name, {"dtype": options.dtype, "rounds": rounds}, comparison))


if __name__ == "__main__":
    main()
