"""TGI's own `text_generation` client (0.7) on SmolLM2: generate, generate_stream, chat, and its asynchronous twin."""

from __future__ import annotations

import asyncio

import pytest
from harness import Server
from text_generation import AsyncClient, Client
from text_generation.errors import ValidationError
from text_generation.types import Message

PROMPT = "A list of ten fruits: apple, pear,"
LENGTH = 12


@pytest.fixture(scope="module")
def client(smollm2: Server) -> Client:
    return Client(smollm2.url, timeout=120)


def test_generate(client: Client) -> None:
    answer = client.generate(PROMPT, max_new_tokens=LENGTH)
    assert answer.details.generated_tokens == LENGTH
    assert answer.details.finish_reason == "length"
    assert answer.details.seed is None
    assert "".join(token.text for token in answer.details.tokens) == answer.generated_text
    sampled = client.generate(PROMPT, max_new_tokens=LENGTH, do_sample=True, seed=3, temperature=0.9)
    assert sampled.details.seed == 3


def test_generate_stream_equals_the_whole(client: Client) -> None:
    whole = client.generate(PROMPT, max_new_tokens=LENGTH)
    events = list(client.generate_stream(PROMPT, max_new_tokens=LENGTH))
    assert [event.token.id for event in events] == [token.id for token in whole.details.tokens]
    assert events[-1].generated_text == whole.generated_text
    assert events[-1].details.generated_tokens == LENGTH


def test_end_of_text_is_a_special_token(client: Client) -> None:
    prompt = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"
    answer = client.generate(prompt, max_new_tokens=64)
    assert answer.details.finish_reason == "eos_token"
    assert answer.details.tokens[-1].special
    assert "<|im_end|>" not in answer.generated_text


def test_stop_sequences(client: Client) -> None:
    whole = client.generate(PROMPT, max_new_tokens=LENGTH).generated_text
    answer = client.generate(PROMPT, max_new_tokens=LENGTH, stop_sequences=[whole[6:9]])
    assert answer.details.finish_reason == "stop_sequence"
    assert answer.generated_text.endswith(whole[6:9])


def test_chat(client: Client) -> None:
    message = Message(role="user", content="What is the capital of France?")
    answer = client.chat([message], max_tokens=24, temperature=0.0)
    assert "Paris" in answer.choices[0].message.content


def test_validation_error(client: Client) -> None:
    with pytest.raises(ValidationError):
        client.generate(PROMPT, max_new_tokens=100_000)


def test_asynchronous_clients_at_once(smollm2: Server) -> None:
    async def run() -> list[str]:
        client = AsyncClient(smollm2.url, timeout=120)
        answers = await asyncio.gather(*(client.generate(PROMPT, max_new_tokens=LENGTH) for _ in range(4)))
        return [answer.generated_text for answer in answers]

    assert len(set(asyncio.run(run()))) == 1


def test_nothing_stays_behind(smollm2: Server) -> None:
    smollm2.assert_idle()
