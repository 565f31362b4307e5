"""Closed-loop load on any OpenAI-compatible server: time to first token, time per output token, output tokens per
second.

    python benchmarks/serving.py --url http://127.0.0.1:3000

For each concurrency (1, 8 and 32 clients) every client sends prompts of a set length, all different from the
beginning on, so that no prefix cache helps; 64 tokens are generated, past the end of the text where the server allows
it (`ignore_eos`). Two requests warm the server up before each level and are not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from typing import Any

from client import Target, Timing, closed_loop, discover, make_prompt, percentile
from report import milliseconds, save, table

# Distinct for every prompt of a process, whatever the level.
_seeds = itertools.count(1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The load's own flags, shared with cpu_peers.py."""
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32], help="clients in the closed loop")
    parser.add_argument(
        "--prompt-tokens", type=int, default=256, help="length of each prompt, about (usage has it exactly)"
    )
    parser.add_argument("--output-tokens", type=int, default=64, help="max_tokens of each request")
    parser.add_argument("--requests-per-client", type=int, default=2, help="per level; at least 6 requests in all")


async def measure(target: Target, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per concurrency."""
    rows = []
    for concurrency in options.concurrency:
        await closed_loop(target, _prompts(2, options), min(8, options.output_tokens), 2)
        count = max(6, options.requests_per_client * concurrency)
        timings, wall = await closed_loop(target, _prompts(count, options), options.output_tokens, concurrency)
        rows.append(summarise(timings, wall, concurrency))
    return rows


def _prompts(count: int, options: argparse.Namespace) -> list[str]:
    return [make_prompt(options.prompt_tokens, next(_seeds)) for _ in range(count)]


def summarise(timings: list[Timing], wall: float, concurrency: int) -> dict[str, Any]:
    """The figures of one level; times in seconds."""
    output_tokens = sum(timing.completion_tokens for timing in timings)
    tpots = [timing.tpot for timing in timings if timing.tpot is not None]
    gaps = [gap for timing in timings for gap in timing.gaps]
    return {
        "concurrency": concurrency,
        "requests": len(timings),
        "prompt_tokens_mean": sum(timing.prompt_tokens for timing in timings) / len(timings),
        "output_tokens_mean": output_tokens / len(timings),
        "output_tokens_per_second": output_tokens / wall,
        "ttft_p50": percentile([timing.ttft for timing in timings], 0.5),
        "ttft_p99": percentile([timing.ttft for timing in timings], 0.99),
        "tpot_p50": percentile(tpots, 0.5) if tpots else None,
        "tpot_p99": percentile(tpots, 0.99) if tpots else None,
        "gap_p99": percentile(gaps, 0.99) if gaps else None,
        "wall_seconds": wall,
    }


def render(rows: list[dict[str, Any]]) -> str:
    """The rows of one server as a table."""
    header = [
        "clients",
        "requests",
        "prompt",
        "output",
        "tok/s",
        "TTFT p50 ms",
        "p99",
        "TPOT p50 ms",
        "p99",
        "gap p99 ms",
    ]
    return table(
        header,
        [
            [
                str(row["concurrency"]),
                str(row["requests"]),
                f"{row['prompt_tokens_mean']:.0f}",
                f"{row['output_tokens_mean']:.0f}",
                f"{row['output_tokens_per_second']:.1f}",
                *(milliseconds(row[key]) for key in ("ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99", "gap_p99")),
            ]
            for row in rows
        ],
    )


def main() -> None:
    """Measures one server that is already running."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the server, with or without /v1")
    parser.add_argument("--model", help="its name there; default: the first of /v1/models")
    parser.add_argument("--name", default="serving", help="of the result files")
    add_arguments(parser)
    options = parser.parse_args()

    async def run() -> tuple[Target, list[dict[str, Any]]]:
        target = await discover(options.url, options.model)
        return target, await measure(target, options)

    target, rows = asyncio.run(run())
    print(render(rows))
    print(save(options.name, {"model": target.model, "ignore_eos": bool(target.extra), "rows": rows}, render(rows)))


if __name__ == "__main__":
    main()
