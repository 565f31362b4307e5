"""Ours and the peers on this machine's CPU: the same loads, one server at a time, in turns.

    python benchmarks/cpu_peers.py                            # ours in bf16 and from the Q4_1 file, vLLM, llama.cpp
    python benchmarks/cpu_peers.py --sides anaphora-f32 transformers-f32

SmolLM2-135M-Instruct, 256 prompt and 64 output tokens, 1, 8 and 32 clients; then a prompt of 6,000 tokens, cold, and
warm with 50 tokens more. Machines are shared and drift, so the sides alternate (`--rounds`) and only ratios are
results: ours over the best peer of the same precision, and the best of ours over the best of all. The lowest and the
highest of each figure are there to judge the noise by.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from statistics import median
from typing import Any

import long_prompt
import serving
from client import discover
from peers import SIDES, serve
from report import save, table

OURS = "anaphora"
DEFAULT_SIDES = ("anaphora-bf16", "vllm-bf16", "anaphora-q4_1", "llamacpp-q4_1")
Figures = dict[str, list[float]]  # name of a figure -> its value in every round


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One round of one side: the whole load, then the long prompts, on a fresh start."""
    side = SIDES[name]
    with serve(side.peer, side.dtype, side.model()) as running:

        async def run() -> dict[str, Any]:
            target = await discover(running.url, running.model)
            result: dict[str, Any] = {"side": name, "ignore_eos": bool(target.extra), "ready_s": running.ready_s}
            if "serving" in options.benchmarks:
                result["serving"] = await serving.measure(target, options)
            if "long_prompt" in options.benchmarks:
                result["long_prompt"] = await long_prompt.measure(target, options)
            return result

        result = asyncio.run(run())
    result["peak_memory_bytes"] = running.peak_memory_bytes
    return result


def figures(rounds: Sequence[dict[str, Any]]) -> Figures:
    """Every figure of one side."""
    collected: Figures = {}

    def add(name: str, value: float) -> None:
        collected.setdefault(name, []).append(value)

    for result in rounds:
        for row in result.get("serving", ()):
            clients = f"{row['concurrency']} client" + ("s" if row["concurrency"] > 1 else "")
            add(f"output tok/s, {clients}", row["output_tokens_per_second"])
            add(f"TTFT p50 ms, {clients}", row["ttft_p50"] * 1000)
            if row["tpot_p50"] is not None:
                add(f"TPOT p50 ms, {clients}", row["tpot_p50"] * 1000)
                add(f"gap p99 ms, {clients}", row["gap_p99"] * 1000)
        for row in result.get("long_prompt", ()):
            add("6,000-token prompt, cold TTFT ms", row["cold_ttft"] * 1000)
            add("the same + 50 tokens, warm TTFT ms", row["warm_ttft"] * 1000)
            add("cold / warm", row["ratio"])
        add("start to ready, s", result["ready_s"])
        if result["peak_memory_bytes"]:
            add("peak memory, MB", result["peak_memory_bytes"] / 1e6)
    return collected


def render(sides: dict[str, Figures]) -> str:
    """Median (lowest to highest) of every side; ratios of medians."""
    names = list(dict.fromkeys(name for side in sides.values() for name in side))
    precisions = list(dict.fromkeys(side.rpartition("-")[2] for side in sides))
    comparisons = [
        (precision, [s for s in sides if s.startswith(OURS) and s.endswith(f"-{precision}")], peers)
        for precision in precisions
        if (peers := [s for s in sides if not s.startswith(OURS) and s.endswith(f"-{precision}")])
    ]
    everyone = [s for s in sides if not s.startswith(OURS)]
    if len(precisions) > 1 and everyone:
        comparisons.append(("best", [s for s in sides if s.startswith(OURS)], everyone))

    def spread(values: Sequence[float] | None) -> str:
        return f"{median(values):.3g} ({min(values):.3g}..{max(values):.3g})" if values else "-"

    def best(name: str, among: Sequence[str]) -> float | None:
        values = [median(sides[side][name]) for side in among if name in sides[side]]
        more_is_better = "tok/s" in name or name == "cold / warm"
        return (max if more_is_better else min)(values) if values else None

    def ratio(name: str, ours: Sequence[str], peers: Sequence[str]) -> str:
        left, right = best(name, ours), best(name, peers)
        return f"{left / right:.2f}" if left and right else "-"

    rows = [
        [
            name,
            *(spread(side.get(name)) for side in sides.values()),
            *(ratio(name, ours, peers) for _, ours, peers in comparisons),
        ]
        for name in names
    ]
    return table(["", *sides, *(f"ours / peer, {precision}" for precision, _, _ in comparisons)], rows)


def main() -> None:
    """Alternates the sides and writes the comparison down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", choices=sorted(SIDES), default=list(DEFAULT_SIDES))
    parser.add_argument("--rounds", type=int, default=3, help="of each side, in turns")
    parser.add_argument(
        "--benchmarks", nargs="+", choices=["serving", "long_prompt"], default=["serving", "long_prompt"]
    )
    parser.add_argument("--name", default="cpu-peers", help="of the result files")
    serving.add_arguments(parser)
    long_prompt.add_arguments(parser)
    options = parser.parse_args()

    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in options.sides}
    for number in range(options.rounds):
        for name in options.sides:
            result = measure(name, options)
            rounds[name].append(result)
            print(f"\n== round {number + 1}, {name}: ready after {result['ready_s']:.1f} s")
            if "serving" in result:
                print(serving.render(result["serving"]))
            if "long_prompt" in result:
                print(long_prompt.render(result["long_prompt"]), flush=True)
    comparison = render({name: figures(results) for name, results in rounds.items()})
    print(f"\n{comparison}")
    print(save(options.name, {"rounds": rounds}, comparison))


if __name__ == "__main__":
    main()
