"""One streaming request to any OpenAI-compatible server, timed; and a closed loop of many.

A closed loop of concurrency C is C clients, each of which sends its next request when its last one is complete. Times
are taken where a user would: from before the request is sent to the moment that each chunk with text arrives. Token
counts are the server's own `usage`, never a guess from chunks; a server that sends no usage on streams cannot be
measured.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

# Each is one token after a space in the usual byte-level BPE vocabularies, so that N words are about N tokens.
# fmt: off
WORDS = [
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
    "program", "question", "work", "government", "number", "night", "point", "home", "water", "room", "mother",
    "area", "money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business",
    "issue", "side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end",
    "member", "law", "car", "city", "community", "name", "president", "team", "minute", "idea", "body", "information",
    "back", "parent", "face", "others", "level", "office", "door", "health", "person", "art", "war", "history",
    "party", "result", "change", "morning", "reason", "research", "girl", "guy", "moment", "air", "teacher", "force",
    "education",
]
# fmt: on


class BenchmarkError(RuntimeError):
    """The server answered something that cannot be measured."""


@dataclass(frozen=True)
class Target:
    """A server to measure."""

    url: str  # without /v1
    model: str
    extra: dict[str, Any] = field(default_factory=dict)  # fields for every request body, e.g. {"ignore_eos": True}


@dataclass(frozen=True)
class Timing:
    """What one request cost; times in seconds."""

    sent: float  # by `time.perf_counter`
    ttft: float  # sent -> first chunk with text
    total: float  # sent -> last chunk with text
    gaps: tuple[float, ...]  # between consecutive chunks with text
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None  # None: the server does not say
    text: str

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None if there was only one."""
        if self.completion_tokens < 2:
            return None
        return (self.total - self.ttft) / (self.completion_tokens - 1)


def make_prompt(num_words: int, seed: int) -> str:
    """About `num_words` tokens; two seeds share nothing beyond a digit or two at the beginning."""
    rng = random.Random(seed)
    return " ".join(f"{rng.randrange(10**6)}" if i == 0 else rng.choice(WORDS) for i in range(num_words))


def connect() -> aiohttp.ClientSession:
    """A client without limits of its own: the server's queue is what is measured.

    A connection for each request: some servers close those that they keep without saying so.
    """
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None, sock_read=1800))


async def complete(session: aiohttp.ClientSession, target: Target, prompt: str, max_tokens: int) -> Timing:
    """Streams one greedy completion of `prompt`."""
    return await _stream(session, target, "/v1/completions", {"prompt": prompt, "max_tokens": max_tokens})


async def chat(
    session: aiohttp.ClientSession, target: Target, messages: list[dict[str, str]], max_tokens: int
) -> Timing:
    """Streams one greedy reply to `messages`."""
    return await _stream(session, target, "/v1/chat/completions", {"messages": messages, "max_tokens": max_tokens})


async def _stream(session: aiohttp.ClientSession, target: Target, path: str, fields: dict[str, Any]) -> Timing:
    body = {
        "model": target.model,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
        **target.extra,
    }
    # Encoded before the clock starts: a long prompt takes the client milliseconds.
    data = json.dumps(body).encode()
    sent = time.perf_counter()
    arrivals: list[float] = []
    text: list[str] = []
    usage: dict[str, Any] | None = None
    async with session.post(f"{target.url}{path}", data=data, headers={"content-type": "application/json"}) as response:
        if response.status != 200:
            raise BenchmarkError(f"status {response.status}: {(await response.text())[:500]}")
        async for event in _events(response):
            if event.get("error"):
                raise BenchmarkError(f"error in the stream: {event['error']}")
            new = "".join(_text(choice) for choice in event.get("choices", ()))
            if new:
                arrivals.append(time.perf_counter())
                text.append(new)
            usage = event.get("usage") or usage
    if not arrivals:
        raise BenchmarkError("the stream had no text")
    if usage is None:
        raise BenchmarkError("the stream had no usage: this server's tokens cannot be counted")
    details = usage.get("prompt_tokens_details") or {}
    return Timing(
        sent=sent,
        ttft=arrivals[0] - sent,
        total=arrivals[-1] - sent,
        gaps=tuple(later - earlier for earlier, later in itertools.pairwise(arrivals)),
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        cached_tokens=details.get("cached_tokens"),
        text="".join(text),
    )


def _text(choice: dict[str, Any]) -> str:
    """What a chunk of either endpoint adds."""
    return choice.get("text") or (choice.get("delta") or {}).get("content") or ""


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each `data:` line, up to `[DONE]`."""
    async for raw in response.content:
        line = raw.strip()
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        yield json.loads(data)


async def closed_loop(
    target: Target, prompts: Sequence[str], max_tokens: int, concurrency: int
) -> tuple[list[Timing], float]:
    """Completes every prompt, `concurrency` at a time; returns the timings and the wall time in seconds."""
    waiting = iter(prompts)  # shared: each prompt is taken by exactly one client
    timings: list[Timing] = []

    async def client(session: aiohttp.ClientSession) -> None:
        while (prompt := next(waiting, None)) is not None:
            timings.append(await complete(session, target, prompt, max_tokens))

    async with connect() as session:
        start = time.perf_counter()
        async with asyncio.TaskGroup() as clients:
            for _ in range(concurrency):
                clients.create_task(client(session))
        return timings, time.perf_counter() - start


async def discover(url: str, model: str | None = None) -> Target:
    """Finds the model's name and whether the server honours `ignore_eos`, with one tiny request."""
    url = url.rstrip("/").removesuffix("/v1")
    async with connect() as session:
        if model is None:
            async with session.get(f"{url}/v1/models") as response:
                model = (await response.json())["data"][0]["id"]
        honours = Target(url, model, {"ignore_eos": True})
        try:
            await complete(session, honours, "Hello there", 2)
        except BenchmarkError:
            plain = Target(url, model)
            await complete(session, plain, "Hello there", 2)
            return plain
        return honours


def percentile(values: Sequence[float], fraction: float) -> float:
    """Linear interpolation between the closest ranks; `fraction` 0.5 is the median."""
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
