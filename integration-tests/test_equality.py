"""Greedy output equals transformers', token for token, in float32, however the work is cut up.

For each model: 20 prompts x 64 tokens; one at a time and 32 at once; chunks of 16 and of 512 tokens; a cold and a
warm prefix cache; a pool with room for all and one so small that sequences are preempted; one rank and two. The
tiny models go through the whole matrix, SmolLM2 (from GGUF and from safetensors) meets each axis once. The
reference is reference.py's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, in_parallel
from models import smollm2_safetensors, tiny_gemma3, tiny_llama, tiny_mistral, tiny_qwen3
from prompts import TEXTS
from reference import MAX_NEW_TOKENS, Expected, expect

WIDTH = 32
# The longest prompt and its 64 tokens fit, all 32 sequences together do not.
SMALL_POOL = {"smollm2": 512, "tiny": 640}

Start = Callable[..., Server]
CHUNKS = ("16", "512")


def check(server: Server, expected: tuple[Expected, ...], *, width: int) -> None:
    """Generates every expected prompt, `width` at a time, and compares the ids."""
    answers = in_parallel(lambda one: server.generate(one.prompt, max_new_tokens=MAX_NEW_TOKENS), expected, width)
    got = [[token["id"] for token in answer["details"]["tokens"]] for answer in answers]
    wrong = [one.explain(ids) for one, ids in zip(expected, got, strict=True) if list(one.ids) != ids]
    assert not wrong, f"{len(wrong)} of {len(expected)} differ:\n" + "\n".join(wrong)


def at_once(expected: tuple[Expected, ...]) -> tuple[Expected, ...]:
    """32 requests: the twenty, and twelve of them a second time, in flight together with their twins."""
    return (expected + expected)[:WIDTH]


def hit_tokens(server: Server) -> float:
    return server.metrics().total("anaphora_prefix_cache_tokens_total", result="hit")


def preemptions(server: Server) -> float:
    return server.metrics().total("anaphora_preemptions_total")


def check_with_preemptions(server: Server, expected: tuple[Expected, ...]) -> None:
    """32 at once, until some are preempted: how many are under way together depends on the machine's pace."""
    before = preemptions(server)
    for _ in range(8):
        check(server, at_once(expected), width=WIDTH)
        if preemptions(server) > before:
            return
    raise AssertionError("8 rounds of 32 requests never filled the pool")


# === The tiny models: the whole matrix ===


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("model", [tiny_llama, tiny_mistral])
def test_tiny(model: Callable[[], Path], chunk: str, start: Start) -> None:
    expected = expect(model())
    server = start(model(), "--max-batch-prefill-tokens", chunk)
    check(server, expected, width=1)  # cold, but for the one shared beginning
    cold_hits = hit_tokens(server)
    check(server, expected, width=1)
    assert hit_tokens(server) - cold_hits >= 0.9 * sum(len(one.prompt_ids) - 1 for one in expected)
    check(server, at_once(expected), width=WIDTH)
    assert preemptions(server) == 0
    server.assert_idle()


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("model", [tiny_llama, tiny_mistral])
def test_tiny_in_a_pool_that_preempts(model: Callable[[], Path], chunk: str, start: Start) -> None:
    expected = expect(model())
    limits = ("--max-batch-total-tokens", str(SMALL_POOL["tiny"]), "--max-batch-prefill-tokens", chunk)
    server = start(model(), *limits)
    check_with_preemptions(server, expected)  # at first cold
    check(server, at_once(expected), width=WIDTH)  # with what the evictions left
    server.assert_idle()


@pytest.mark.parametrize("model", [tiny_llama, tiny_mistral])
def test_tiny_without_a_prefix_cache(model: Callable[[], Path], start: Start) -> None:
    expected = expect(model())
    server = start(model(), "--no-prefix-cache")
    check(server, at_once(expected), width=WIDTH)
    check(server, at_once(expected), width=WIDTH)
    assert hit_tokens(server) == 0
    server.assert_idle()
    assert server.metrics().blocks["cached"] == 0


@pytest.mark.parametrize("model", [tiny_llama, tiny_mistral])
def test_tiny_on_two_ranks(model: Callable[[], Path], start: Start) -> None:
    expected = expect(model())
    server = start(model(), "--num-shard", "2", "--max-batch-prefill-tokens", "64")
    assert len(server.find("shard")) == 2
    check(server, expected[:6], width=1)
    check(server, at_once(expected), width=WIDTH)
    server.assert_idle()


@pytest.mark.parametrize("model", [tiny_qwen3, tiny_gemma3])
def test_tiny_of_other_architectures(model: Callable[[], Path], start: Start) -> None:
    """Several axes at once: two ranks, small chunks, one at a time on a cold and on a warm cache, and 32 at once."""
    expected = expect(model())
    server = start(model(), "--num-shard", "2", "--max-batch-prefill-tokens", "16")
    check(server, expected[:4], width=1)
    check(server, expected[:4], width=1)
    assert hit_tokens(server) > 0
    check(server, at_once(expected), width=WIDTH)
    server.assert_idle()


# === SmolLM2: each axis once ===


def test_smollm2_gguf(smollm2: Server) -> None:
    """Default flags (chunks of 512): 32 at once on a cold cache, then one at a time on a warm one."""
    expected = expect(smollm2_safetensors())
    check(smollm2, at_once(expected), width=WIDTH)
    before = hit_tokens(smollm2)
    check(smollm2, expected, width=1)
    assert hit_tokens(smollm2) - before >= 0.9 * sum(len(one.prompt_ids) - 1 for one in expected)
    smollm2.assert_idle()


def test_smollm2_safetensors_in_small_chunks_and_a_pool_that_preempts(start: Start) -> None:
    """Chunks of 16 in a pool of 512 tokens: a few one at a time on a cold cache, then 32 at once."""
    expected = expect(smollm2_safetensors())
    limits = ("--max-batch-total-tokens", str(SMALL_POOL["smollm2"]), "--max-batch-prefill-tokens", "16")
    server = start(smollm2_safetensors(), *limits)
    check(server, expected[:4], width=1)
    check_with_preemptions(server, expected)
    server.assert_idle()


def test_tokenize_gives_the_reference_ids(smollm2: Server) -> None:
    """The ids that all of the above rests on, with byte offsets that cut the text without a gap."""
    expected = expect(smollm2_safetensors())
    for one in expected:
        tokens = smollm2.post("/tokenize", {"inputs": one.prompt}).json()
        assert [token["id"] for token in tokens] == list(one.prompt_ids)
    ascii_only = next(text for text in TEXTS if text.startswith("The lighthouse"))
    pieces = smollm2.post("/tokenize", {"inputs": ascii_only}).json()
    assert "".join(ascii_only[piece["start"] : piece["stop"]] for piece in pieces) == ascii_only
