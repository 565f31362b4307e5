"""The 200,000-token turn over HTTP: a conversation of that length gets a few new tokens.

    python benchmarks/long_turn.py                                    # ours and vLLM, in turns
    python benchmarks/long_turn.py --sides anaphora --rounds 1

On a tiny random Llama of 262,144 positions (2 layers, hidden 128, 4 heads, 2 KV heads), so that what is measured is the
stack around the model. Each round, on a fresh server:

- cold: a new prompt of about 200,000 tokens, time to first token;
- warm: the same prompt and about 20 tokens more, each turn longer than the one before, as a conversation grows;
- beside it: the time to first token of a two-word request sent in the middle of a warm turn, and of one when idle;
- neighbour: the inter-token latency of a stream that decodes while another such prompt is prefilled cold.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from statistics import median
from typing import Any

from client import Target, Timing, complete, connect, discover, make_prompt, percentile
from make_model import long_llama
from peers import serve
from report import save, table

CONTEXT = 262144
_seeds = itertools.count(3_000_000)


async def measure(target: Target, options: argparse.Namespace) -> dict[str, Any]:
    """One round of one server; times in seconds."""
    async with connect() as session:
        await complete(session, target, make_prompt(200, next(_seeds)), 4)  # warm-up of code paths
        idle = [(await complete(session, target, "Hello there", 1)).ttft for _ in range(5)]

        prompt = make_prompt(options.prompt_tokens, next(_seeds))
        cold = await complete(session, target, prompt, 4)
        warm: list[Timing] = []
        beside: list[float] = []
        for turn in range(2 * options.turns):
            prompt = f"{prompt} {make_prompt(options.new_tokens, next(_seeds))}"
            if turn < options.turns:
                warm.append(await complete(session, target, prompt, 4))
            else:  # once more, with a two-word request a few milliseconds behind
                long = asyncio.create_task(complete(session, target, prompt, 4))
                await asyncio.sleep(0.005)
                beside.append((await complete(session, target, "Hello there", 1)).ttft)
                await long

        result: dict[str, Any] = {
            "prompt_tokens": cold.prompt_tokens,
            "cold_ttft": cold.ttft,
            "warm_ttft": [timing.ttft for timing in warm],
            "warm_cached_tokens": [timing.cached_tokens for timing in warm],
            "warm_prompt_tokens": [timing.prompt_tokens for timing in warm],
            "idle_ttft": idle,
            "beside_ttft": beside,
        }
        if options.neighbour:
            result["neighbour_gaps"] = await _neighbour(session, target, options)
        return result


async def _neighbour(session: Any, target: Target, options: argparse.Namespace) -> list[float]:
    """The gaps of short streams, one after another, that lie within one cold prefill."""
    prefill = asyncio.create_task(complete(session, target, make_prompt(options.prompt_tokens, next(_seeds)), 1))
    await asyncio.sleep(0.2)
    streams: list[Timing] = []
    while not prefill.done():
        streams.append(await complete(session, target, make_prompt(20, next(_seeds)), 200))
    end = (await prefill).sent + (await prefill).ttft
    gaps = []
    for stream in streams:
        arrived = stream.sent + stream.ttft
        for gap in stream.gaps:
            arrived += gap
            if arrived < end:
                gaps.append(gap)
    return gaps


def summarise(rounds: list[dict[str, Any]]) -> dict[str, float | None]:
    """The figures of one side over all rounds, in milliseconds; medians unless they say otherwise."""

    def pooled(key: str) -> list[float]:
        return [value for result in rounds for value in result.get(key, ())]

    def ms(values: list[float], fraction: float = 0.5) -> float | None:
        return percentile(values, fraction) * 1000 if values else None

    cold = [result["cold_ttft"] for result in rounds]
    return {
        "prompt tokens": rounds[0]["prompt_tokens"],
        "cold TTFT ms": median(cold) * 1000,
        "warm TTFT ms": ms(pooled("warm_ttft")),
        "warm TTFT ms, p99": ms(pooled("warm_ttft"), 0.99),
        "cold / warm": median(cold) / median(pooled("warm_ttft")),
        "two-word request, idle, TTFT ms": ms(pooled("idle_ttft")),
        "two-word request beside a warm turn, TTFT ms": ms(pooled("beside_ttft")),
        "neighbour's gaps beside a cold prefill, p50 ms": ms(pooled("neighbour_gaps")),
        "neighbour's gaps beside a cold prefill, p99 ms": ms(pooled("neighbour_gaps"), 0.99),
        "start to ready, s": median([result["ready_s"] for result in rounds]),
        "peak memory, MB": median([result["peak_memory_bytes"] for result in rounds]) / 1e6,
    }


def render(sides: dict[str, dict[str, float | None]]) -> str:
    """Every figure of every side, and the first side over each other."""
    ours, *peers = sides

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"

    def ratio(name: str, peer: str) -> str:
        left, right = sides[ours][name], sides[peer][name]
        return f"{left / right:.3f}" if left and right else "-"

    rows = [
        [name, *(cell(side[name]) for side in sides.values()), *(ratio(name, peer) for peer in peers)]
        for name in sides[ours]
    ]
    return table(["", *sides, *(f"{ours} / {peer}" for peer in peers)], rows)


def main() -> None:
    """Alternates the servers and writes the comparison down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", choices=["anaphora", "vllm"], default=["anaphora", "vllm"])
    parser.add_argument("--dtype", default="bfloat16", help="of all")
    parser.add_argument("--rounds", type=int, default=1, help="of each side, in turns")
    parser.add_argument("--prompt-tokens", type=int, default=200_000, help="of the conversation, about")
    parser.add_argument("--new-tokens", type=int, default=20, help="of each turn, about")
    parser.add_argument("--turns", type=int, default=10, help="warm turns of each kind")
    parser.add_argument("--no-neighbour", dest="neighbour", action="store_false", help="skip the second cold prefill")
    parser.add_argument("--name", default="long-turn", help="of the result files")
    options = parser.parse_args()

    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in options.sides}
    for number in range(options.rounds):
        for name in options.sides:
            with serve(name, options.dtype, long_llama(), context=CONTEXT) as running:

                async def run(url: str, model: str | None) -> dict[str, Any]:
                    return await measure(await discover(url, model), options)

                result = asyncio.run(run(running.url, running.model))
            result |= {"ready_s": running.ready_s, "peak_memory_bytes": running.peak_memory_bytes}
            rounds[name].append(result)
            print(f"round {number + 1}, {name}: cold {result['cold_ttft']:.1f} s", flush=True)
    comparison = render({name: summarise(results) for name, results in rounds.items()})
    print(f"\n{comparison}")
    print(save(options.name, {"dtype": options.dtype, "rounds": rounds}, comparison))


if __name__ == "__main__":
    main()
