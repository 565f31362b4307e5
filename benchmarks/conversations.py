"""Many conversations over one long system prompt: how much comes from the cache, and how long it all takes.

    python benchmarks/conversations.py                                # ours and vLLM, in turns

SmolLM2-135M-Instruct; 32 conversations of 10 turns over one system prompt of about 6,000 tokens, all at once: each
conversation sends its next turn when the reply to the last one is complete.

The best possible hits are counted from `usage` alone: everything of the turn before, reply included, is there to be
reused, and of a first turn the system prompt, for all conversations but one. A reply may be tokenised otherwise when
it comes back as text, and then no server can reuse its end: the ratio is a lower bound.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import time
from statistics import median
from typing import Any

from client import Target, Timing, chat, connect, discover, make_prompt
from peers import SIDES, serve
from report import save, table

_seeds = itertools.count(5_000_000)


async def measure(target: Target, options: argparse.Namespace) -> dict[str, Any]:
    """One round of one server."""
    system = make_prompt(options.system_tokens, next(_seeds))
    async with connect() as session:
        await chat(session, target, [{"role": "user", "content": make_prompt(100, next(_seeds))}], 4)
        began = time.perf_counter()
        conversations = await asyncio.gather(
            *(_converse(session, target, system, options, number) for number in range(options.conversations))
        )
        wall = time.perf_counter() - began
    shared = min(turns[0].prompt_tokens for turns in conversations) - options.message_tokens
    possible = shared * (len(conversations) - 1)
    for turns in conversations:
        possible += sum(turn.prompt_tokens + turn.completion_tokens for turn in turns[:-1])
    every = [turn for turns in conversations for turn in turns]
    return {
        "wall_seconds": wall,
        "turns": len(every),
        "prompt_tokens": sum(turn.prompt_tokens for turn in every),
        "cached_tokens": sum(turn.cached_tokens or 0 for turn in every),
        "possible_tokens": possible,
        "ttft_p50": median(turn.ttft for turn in every),
        "output_tokens": sum(turn.completion_tokens for turn in every),
    }


async def _converse(
    session: Any, target: Target, system: str, options: argparse.Namespace, number: int
) -> list[Timing]:
    rng = random.Random(number)
    messages = [{"role": "system", "content": system}]
    turns = []
    for _ in range(options.turns):
        messages.append({"role": "user", "content": make_prompt(options.message_tokens, rng.randrange(10**9))})
        turn = await chat(session, target, messages, options.output_tokens)
        messages.append({"role": "assistant", "content": turn.text})
        turns.append(turn)
    return turns


def render(sides: dict[str, list[dict[str, Any]]]) -> str:
    """Medians over the rounds, and the first side over each other."""
    first, *others = sides
    figures = {
        "wall, s": lambda r: r["wall_seconds"],
        "hits / best possible": lambda r: r["cached_tokens"] / r["possible_tokens"],
        "hits / prompt tokens": lambda r: r["cached_tokens"] / r["prompt_tokens"],
        "TTFT p50, ms": lambda r: r["ttft_p50"] * 1000,
        "output tok/s": lambda r: r["output_tokens"] / r["wall_seconds"],
    }
    rows = []
    for name, figure in figures.items():
        values = {side: median(map(figure, rounds)) for side, rounds in sides.items()}
        ratios = (f"{values[first] / values[other]:.2f}" if values[other] else "-" for other in others)
        rows.append([name, *(f"{value:.4g}" for value in values.values()), *ratios])
    return table(["", *sides, *(f"{first} / {other}" for other in others)], rows)


def main() -> None:
    """Alternates the servers and writes the comparison down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", choices=sorted(SIDES), default=["anaphora-bf16", "vllm-bf16"])
    parser.add_argument("--rounds", type=int, default=1, help="of each side, in turns")
    parser.add_argument("--conversations", type=int, default=32, help="at once")
    parser.add_argument("--turns", type=int, default=10, help="of each conversation")
    parser.add_argument("--system-tokens", type=int, default=6000, help="of the shared system prompt, about")
    parser.add_argument("--message-tokens", type=int, default=40, help="of each user's message, about")
    parser.add_argument("--output-tokens", type=int, default=32, help="of each reply")
    parser.add_argument("--name", default="conversations", help="of the result files")
    options = parser.parse_args()

    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in options.sides}
    for number in range(options.rounds):
        for name in options.sides:
            side = SIDES[name]
            with serve(side.peer, side.dtype, side.model()) as running:

                async def run(url: str, model: str | None) -> dict[str, Any]:
                    return await measure(await discover(url, model), options)

                result = asyncio.run(run(running.url, running.model))
            rounds[name].append(result)
            print(f"round {number + 1}, {name}: {result['wall_seconds']:.1f} s", flush=True)
    comparison = render(rounds)
    print(f"\n{comparison}")
    print(save(options.name, {"rounds": rounds}, comparison))


if __name__ == "__main__":
    main()
