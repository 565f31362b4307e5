"""Many clients at once: all streams complete, a full queue says so, and the pool is back to its start afterwards."""

from __future__ import annotations

import asyncio

import aiohttp
import openai
from harness import Server

NUM_STREAMS = 64


def test_64_concurrent_streams_all_complete(smollm2: Server) -> None:
    before = smollm2.metrics()

    async def one(client: openai.AsyncOpenAI, number: int) -> tuple[str | None, int, str]:
        prompt = f"Write {number} sentences about the number {number}."
        chunks = await client.chat.completions.create(
            model="tgi",
            messages=[{"role": "user", "content": prompt}],
            max_tokens=8 + number % 16,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        text, reason, tokens = "", None, 0
        async for chunk in chunks:
            if chunk.usage:
                tokens = chunk.usage.completion_tokens
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
        return reason, tokens, text

    async def run() -> list[tuple[str | None, int, str]]:
        async with openai.AsyncOpenAI(base_url=f"{smollm2.url}/v1", api_key="unused", max_retries=0) as client:
            return await asyncio.gather(*(one(client, number) for number in range(NUM_STREAMS)))

    results = asyncio.run(run())
    for number, (reason, tokens, text) in enumerate(results):
        assert reason in {"length", "stop"}, (number, results[number])
        assert tokens == 8 + number % 16 or reason == "stop"
        assert text
    smollm2.assert_idle()
    after = smollm2.metrics()
    assert after.total("tgi_request_success") - before.total("tgi_request_success") == NUM_STREAMS
    assert after.blocks["total"] == before.blocks["total"]


def test_over_the_limit_is_429_with_retry_after(tiny: Server) -> None:
    """200 requests at a limit of 128: whoever is not taken is told at once, and whoever is taken completes."""
    body = {"model": "tgi", "prompt": "Once upon a time", "max_tokens": 40, "ignore_eos": True, "temperature": 0}
    native = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 40}}
    posts = [("/v1/completions", body), ("/generate", native)] * 100

    async def one(session: aiohttp.ClientSession, path: str, json: object) -> tuple[str, int, str | None, dict]:
        async with session.post(tiny.url + path, json=json) as response:
            return path, response.status, response.headers.get("retry-after"), await response.json()

    async def run() -> list[tuple[str, int, str | None, dict]]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            return await asyncio.gather(*(one(session, path, json) for path, json in posts))

    answers = asyncio.run(run())
    assert {status for _, status, _, _ in answers} == {200, 429}
    for path, status, retry_after, answer in answers:
        if status == 429:
            assert int(retry_after or 0) >= 1
            if path == "/generate":
                assert answer["error_type"] == "overloaded"
            else:
                assert answer["error"]["code"] == "overloaded"
    assert sum(status == 200 for _, status, _, _ in answers) >= 128
    tiny.assert_idle()


def test_shared_prefixes_under_load(tiny: Server) -> None:
    """32 requests with one long beginning, at once: computed about once, and nothing is lost of the pool."""
    beginning = "The quick brown fox jumps over the lazy dog. " * 40
    before = tiny.metrics()

    async def run() -> list[dict]:
        async with aiohttp.ClientSession() as session:

            async def one(number: int) -> dict:
                body = {"model": "tgi", "prompt": f"{beginning}{number}", "max_tokens": 8, "ignore_eos": True}
                async with session.post(f"{tiny.url}/v1/completions", json=body) as response:
                    return (await response.json())["usage"]

            return await asyncio.gather(*(one(number) for number in range(32)))

    usages = asyncio.run(run())
    prompt_tokens = sum(usage["prompt_tokens"] for usage in usages)
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    assert cached > 0.8 * prompt_tokens, (cached, prompt_tokens)
    tiny.assert_idle()
    after = tiny.metrics()
    hits = after.total("anaphora_prefix_cache_tokens_total", result="hit")
    assert hits - before.total("anaphora_prefix_cache_tokens_total", result="hit") == cached
