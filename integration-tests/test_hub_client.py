"""`huggingface_hub.InferenceClient` on SmolLM2: text_generation (with details, streamed) and chat_completion."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Server
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError

PROMPT = "Water boils at"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
LENGTH = 12


@pytest.fixture(scope="module")
def client(smollm2: Server) -> InferenceClient:
    return InferenceClient(model=smollm2.url, timeout=120)


def generate(client: InferenceClient, prompt: str = PROMPT, **options: Any) -> Any:
    """`text_generation` without the prompt before the text, which is there by default, as with TGI."""
    return client.text_generation(prompt, **{"max_new_tokens": LENGTH, "return_full_text": False, **options})


def test_text_generation(client: InferenceClient) -> None:
    text = generate(client)
    details = generate(client, details=True)
    assert details.generated_text == text
    assert details.details.finish_reason == "length"
    assert details.details.generated_tokens == len(details.details.tokens) == LENGTH
    assert "".join(token.text for token in details.details.tokens) == text
    assert all(token.logprob <= 0 for token in details.details.tokens)
    assert details.details.prefill == []
    for full in (None, True):
        assert generate(client, return_full_text=full) == PROMPT + text


def test_text_generation_stream_equals_the_whole(client: InferenceClient) -> None:
    whole = generate(client)
    assert "".join(generate(client, stream=True)) == whole
    events = list(generate(client, stream=True, details=True))
    assert [event.index for event in events] == list(range(1, LENGTH + 1))
    assert "".join(event.token.text for event in events) == whole
    assert events[-1].generated_text == whole
    assert events[-1].details.finish_reason == "length"
    assert events[-1].details.generated_tokens == LENGTH
    assert events[-1].details.input_length > 0
    assert all(event.generated_text is None and event.details is None for event in events[:-1])


def test_text_generation_parameters(client: InferenceClient) -> None:
    # `truncate` keeps the last tokens.
    assert generate(client, "one two three four five six", truncate=2) == generate(client, " five six")
    every = {
        "do_sample": True,
        "temperature": 0.5,
        "top_k": 10,
        "top_p": 0.9,
        "typical_p": 0.9,
        "repetition_penalty": 1.2,
        "seed": 42,
    }
    assert generate(client, **every) == generate(client, **every)
    top = generate(client, max_new_tokens=4, details=True, top_n_tokens=3)
    assert [len(alternatives) for alternatives in top.details.top_tokens] == [3] * 4
    assert [alternatives[0]["id"] for alternatives in top.details.top_tokens] == [t.id for t in top.details.tokens]


def test_text_generation_stop_is_in_the_text(client: InferenceClient) -> None:
    whole = generate(client)
    stop = whole[5:8]
    answer = generate(client, stop=[stop], details=True)
    assert answer.generated_text == whole[: whole.index(stop) + len(stop)]
    assert answer.details.finish_reason == "stop_sequence"


def test_text_generation_best_of(client: InferenceClient) -> None:
    options = {"do_sample": True, "temperature": 1.0, "max_new_tokens": 6, "details": True}
    answer = client.text_generation(PROMPT, best_of=2, **options)
    others = answer.details.best_of_sequences
    assert len(others) == 1
    assert answer.details.seed is not None

    def mean(tokens: list) -> float:
        return sum(token.logprob for token in tokens) / len(tokens)

    assert mean(answer.details.tokens) >= mean(others[0].tokens)


def test_chat_completion(client: InferenceClient) -> None:
    options = {"max_tokens": 32, "temperature": 0.0}
    whole = client.chat_completion(QUESTION, **options)
    assert "Paris" in whole.choices[0].message.content
    chunks = list(client.chat_completion(QUESTION, **options, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    logprobs = client.chat_completion(QUESTION, **options, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert "".join(piece.token for piece in logprobs) == whole.choices[0].message.content


def test_endpoint_information(client: InferenceClient, smollm2: Server) -> None:
    info = InferenceClient(provider="hf-inference").get_endpoint_info(model=smollm2.url)
    assert info["router"]
    assert info["max_total_tokens"] == 8192
    assert info["max_concurrent_requests"] == 128
    assert InferenceClient(provider="hf-inference").health_check(model=smollm2.url)


def test_errors_keep_their_type(client: InferenceClient) -> None:
    for wrong in ({"max_new_tokens": 0}, {"top_p": 1.5}, {"temperature": -1.0}, {"max_new_tokens": 100_000}):
        for stream in (False, True):
            with pytest.raises(ValidationError):
                list(client.text_generation(PROMPT, **{"max_new_tokens": 4, "stream": stream, **wrong}))


def test_nothing_stays_behind(smollm2: Server) -> None:
    smollm2.assert_idle()
