"""The prefix cache changes how long an answer takes, and nothing else; and it never crosses a wall.

Every reply of a long conversation, edited in the middle and given up in between, must be that of a server without a
cache, token for token."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Server, in_parallel
from models import anaphora_command, tiny_llama
from sse import events, take

Start = Callable[..., Server]
NUM_TURNS = 60
NEW_TOKENS = 6
KEYS = {"alice": "key-of-alice", "bob": "key-of-bob"}
WORDS = ["the", "sea", "a", "ship", "said", "wind", "then", "gold", "over", "night", "and", "home", "salt", "stone"]


@pytest.fixture(scope="module")
def uncached() -> Iterator[Server]:
    server = Server.start(tiny_llama(), "--no-prefix-cache")
    try:
        yield server
        server.assert_idle()
        server.stop()
    finally:
        server.destroy()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that two tenants use."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("".join(f"{tenant}:{key}\n" for tenant, key in KEYS.items()))
    server = Server.start(tiny_llama(), "--api-key-file", keys)
    try:
        yield server
        server.assert_idle()
        server.stop()
    finally:
        server.destroy()


def sentence(source: random.Random, num_words: int = 12) -> str:
    return " ".join(source.choices(WORDS, k=num_words))


def token_ids(server: Server, prompt: str) -> list[int]:
    answer = server.generate(prompt, max_new_tokens=NEW_TOKENS)
    return [token["id"] for token in answer["details"]["tokens"]]


def converse(server: Server) -> list[tuple[str, list[int]]]:
    """The prompts and replies of a conversation in which now and then something earlier is rewritten."""
    source = random.Random(0)
    turns: list[str] = []
    spoken = []
    for number in range(NUM_TURNS):
        if number % 7 == 6:  # an edit: what follows it must be computed anew
            turns[source.randrange(len(turns))] = sentence(source)
        if number % 13 == 12:  # somebody goes back some turns
            del turns[-4:]
        turns.append(f"Q: {sentence(source)} A:")
        prompt = "\n".join(turns)
        answer = server.generate(prompt, max_new_tokens=NEW_TOKENS)
        spoken.append((prompt, [token["id"] for token in answer["details"]["tokens"]]))
        turns.append(answer["generated_text"])
    return spoken


def test_a_conversation_is_the_same_without_a_cache(tiny: Server, uncached: Server) -> None:
    """Twice on the server with a cache, which fills and then has everything. Every fifth turn is given up first."""
    spoken = converse(uncached)
    assert len({tuple(ids) for _, ids in spoken}) > NUM_TURNS // 2, "the model says the same to everything"
    hits = []
    for _ in range(2):
        before = tiny.metrics()
        for number, (prompt, ids) in enumerate(spoken):
            if number % 5 == 4:
                with tiny.stream(prompt + " and", 500) as abandoned:
                    take(events(abandoned), 2)
            assert token_ids(tiny, prompt) == ids, f"turn {number}"
        after = tiny.metrics()
        name = "anaphora_prefix_cache_tokens_total"
        hit, miss = (after.total(name, result=r) - before.total(name, result=r) for r in ("hit", "miss"))
        hits.append(hit / (hit + miss))
    assert hits[0] > 0.7, hits
    assert hits[1] > 0.95, hits
    tiny.assert_idle()


def test_ten_at_once_compute_a_new_prefix_once(tiny: Server) -> None:
    prefix = sentence(random.Random("ten at once"), 300)
    before = tiny.metrics().total("anaphora_prefix_cache_tokens_total", result="miss")
    prompts = [f"{prefix} {ending}" for ending in WORDS[:10]]
    answers = in_parallel(lambda prompt: tiny.generate(prompt, max_new_tokens=2), prompts, 10)
    num_prefix = len(tiny.post("/tokenize", {"inputs": prefix}).json())
    missed = tiny.metrics().total("anaphora_prefix_cache_tokens_total", result="miss") - before
    assert len(answers) == 10
    # Once the prefix, and of each prompt what is its own.
    assert num_prefix <= missed <= num_prefix + 10 * 24, (num_prefix, missed)
    tiny.assert_idle()


def test_two_tenants_share_nothing(shared: Server) -> None:
    body = {"prompt": sentence(random.Random("secret"), 100), "max_tokens": 2, "temperature": 0}

    def cached(tenant: str, **fields: Any) -> int:
        headers = {"authorization": f"Bearer {KEYS[tenant]}"}
        answer = shared.post("/v1/completions", {**body, **fields}, headers=headers).json()
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached("alice") == 0
    assert cached("alice") > 50
    assert cached("bob") == 0
    assert cached("bob") > 50
    assert cached("alice", cache_salt="pepper") == 0
    assert shared.post("/v1/completions", body).status_code == 401


def run_cache(server: Server, tenant: str, *arguments: str | Path) -> str:
    """What `anaphora cache ARGUMENTS` prints."""
    command = [*anaphora_command(), "cache", "--url", server.url, "--api-key", KEYS[tenant], *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout


def test_the_command_line_explains_the_cache(shared: Server, tmp_path: Path) -> None:
    source = random.Random("explain")
    turns = [sentence(source, 40) for _ in range(3)]
    body = {"prompt": "\n".join(turns), "max_tokens": 2, "temperature": 0}
    shared.post("/v1/completions", body, headers={"authorization": f"Bearer {KEYS['alice']}"}).raise_for_status()
    turns[1] = "Something else. " + turns[1]
    request = tmp_path / "request.json"
    request.write_text(json.dumps({**body, "prompt": "\n".join(turns)}))

    answer = json.loads(run_cache(shared, "alice", "explain", "--json", request))
    assert answer["reason"] == "diverges"
    assert 0 < answer["matched_tokens"]["device"] == answer["divergence"]["position"] < answer["prompt_tokens"]
    assert answer["divergence"]["after"].startswith("Something"), answer
    text = run_cache(shared, "alice", "explain", request)
    assert f"at token {answer['divergence']['position']}" in text, text
    assert "Something else" in text, text
    others = json.loads(run_cache(shared, "bob", "explain", "--json", request))
    assert others["matched_tokens"]["device"] < answer["matched_tokens"]["device"], others

    assert "alice" in run_cache(shared, "alice", "ls")
    assert "alice" not in run_cache(shared, "bob", "ls")
    assert "blocks forgotten" in run_cache(shared, "alice", "clear")
    assert json.loads(run_cache(shared, "alice", "ls", "--json"))["data"] == []
