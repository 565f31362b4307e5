"""What a prefix cache is worth: the time to first token of a long prompt, cold, and of the same prompt plus a little,
warm.

    python benchmarks/long_prompt.py --url http://127.0.0.1:3000

Each repeat uses a fresh prompt: it is sent (cold), then sent again with about 50 tokens more (warm), as the next turn
of a conversation would be. The ratio cold / warm is the median over the repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from typing import Any

from client import Target, complete, connect, discover, make_prompt, percentile
from report import milliseconds, save, table

# Apart from serving.py's seeds, so that both can run on one server.
_seeds = itertools.count(1_000_000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this benchmark, shared with cpu_peers.py."""
    parser.add_argument("--long-prompt-tokens", type=int, default=6000, help="length of the first prompt, about")
    parser.add_argument("--suffix-tokens", type=int, default=50, help="what the second prompt adds, about")
    parser.add_argument("--repeats", type=int, default=3, help="with a fresh prompt each")


async def measure(target: Target, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per repeat; times in seconds."""
    rows = []
    async with connect() as session:
        await complete(session, target, make_prompt(200, next(_seeds)), 4)  # warm-up of code paths, not of the prompt
        for _ in range(options.repeats):
            prompt = make_prompt(options.long_prompt_tokens, next(_seeds))
            cold = await complete(session, target, prompt, 4)
            longer = f"{prompt} {make_prompt(options.suffix_tokens, next(_seeds))}"
            warm = await complete(session, target, longer, 4)
            rows.append(
                {
                    "cold_prompt_tokens": cold.prompt_tokens,
                    "cold_ttft": cold.ttft,
                    "warm_prompt_tokens": warm.prompt_tokens,
                    "warm_cached_tokens": warm.cached_tokens,
                    "warm_ttft": warm.ttft,
                    "ratio": cold.ttft / warm.ttft,
                }
            )
    return rows


def medians(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The middle repeat of each figure."""
    return {key: percentile([row[key] for row in rows], 0.5) for key in ("cold_ttft", "warm_ttft", "ratio")}


def render(rows: list[dict[str, Any]]) -> str:
    """One line per repeat and one of medians."""
    body = [
        [
            str(row["cold_prompt_tokens"]),
            milliseconds(row["cold_ttft"]),
            str(row["warm_prompt_tokens"]),
            "-" if row["warm_cached_tokens"] is None else str(row["warm_cached_tokens"]),
            milliseconds(row["warm_ttft"]),
            f"{row['ratio']:.1f}",
        ]
        for row in rows
    ]
    middle = medians(rows)
    cold, warm = milliseconds(middle["cold_ttft"]), milliseconds(middle["warm_ttft"])
    body.append(["median", cold, "", "", warm, f"{middle['ratio']:.1f}"])
    return table(["prompt", "cold TTFT ms", "second prompt", "cached", "warm TTFT ms", "cold / warm"], body)


def main() -> None:
    """Measures one server that is already running."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the server, with or without /v1")
    parser.add_argument("--model", help="its name there; default: the first of /v1/models")
    parser.add_argument("--name", default="long_prompt", help="of the result files")
    add_arguments(parser)
    options = parser.parse_args()

    async def run() -> tuple[Target, list[dict[str, Any]]]:
        target = await discover(options.url, options.model)
        return target, await measure(target, options)

    target, rows = asyncio.run(run())
    print(render(rows))
    print(save(options.name, {"model": target.model, "rows": rows, "median": medians(rows)}, render(rows)))


if __name__ == "__main__":
    main()
