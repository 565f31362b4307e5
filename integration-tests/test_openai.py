"""The `openai` client, as its users write it, on SmolLM2: chat and text completions, whole and streamed, and its
errors."""

from __future__ import annotations

import openai
import pytest
from harness import Server
from models import smollm2_safetensors
from openai.types.chat import ChatCompletionChunk
from openai.types.completion import Completion
from transformers import AutoTokenizer

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def client(smollm2: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{smollm2.url}/v1", api_key="unused", max_retries=0)


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


# === Chat ===


def test_chat(client: openai.OpenAI, model: str, smollm2: Server) -> None:
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=48, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == model
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop"  # it ended by itself
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    # The prompt is the template's, as transformers renders it, and has no special token besides the template's own.
    tokenizer = AutoTokenizer.from_pretrained(smollm2_safetensors())
    rendered = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    templated = smollm2.post("/chat_tokenize", {"model": model, "messages": QUESTION}).json()
    assert templated["templated_text"] == rendered
    ids = tokenizer(rendered, add_special_tokens=False).input_ids
    assert [token["id"] for token in templated["tokenize_response"]] == ids
    assert answer.usage.prompt_tokens == len(ids)
    again = client.completions.create(model=model, prompt=rendered, max_tokens=48, temperature=0)
    assert again.choices[0].text == choice.message.content


def test_chat_stream_equals_the_whole(client: openai.OpenAI, model: str) -> None:
    options = {"model": model, "messages": QUESTION, "max_tokens": 48, "temperature": 0}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    *parts, last = chunks
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1
    assert parts[0].choices[0].delta.role == "assistant"
    assert content(parts) == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in parts]
    assert reasons[-1] == "stop"
    assert set(reasons[:-1]) == {None}
    assert all(chunk.usage is None for chunk in parts)
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    plain = list(client.chat.completions.create(**options, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in plain)


def content(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_chat_counts_cached_tokens(client: openai.OpenAI, model: str) -> None:
    text = "Tell me about the sea. " * 20
    options = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0}
    first = client.chat.completions.create(**options).usage
    second = client.chat.completions.create(**options).usage
    assert second.prompt_tokens == first.prompt_tokens
    # Every token but the last: one must be computed to sample from.
    assert second.prompt_tokens_details.cached_tokens == second.prompt_tokens - 1
    assert first.prompt_tokens_details.cached_tokens < 64


def test_chat_logprobs(client: openai.OpenAI, model: str) -> None:
    options = {"model": model, "messages": QUESTION, "max_tokens": 5, "temperature": 0}
    answer = client.chat.completions.create(**options, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens == 5
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    for token in tokens:
        assert bytes(token.bytes).decode() == token.token
        best = [top.logprob for top in token.top_logprobs]
        assert len(best) == 3
        assert best == sorted(best, reverse=True)
        assert token.logprob == best[0] <= 0  # greedy
    streamed = list(client.chat.completions.create(**options, logprobs=True, top_logprobs=3, stream=True))
    pieces = [t for chunk in streamed if chunk.choices[0].logprobs for t in chunk.choices[0].logprobs.content]
    assert [piece.token for piece in pieces] == [token.token for token in tokens]
    assert [piece.logprob for piece in pieces] == pytest.approx([token.logprob for token in tokens], abs=1e-4)


def test_chat_n(client: openai.OpenAI, model: str) -> None:
    options = {"model": model, "messages": QUESTION, "max_tokens": 16, "temperature": 1.0, "seed": 7, "n": 3}
    answer = client.chat.completions.create(**options)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) > 1
    again = client.chat.completions.create(**options)
    assert [choice.message.content for choice in again.choices] == texts
    assert answer.usage.completion_tokens <= 3 * 16


def test_chat_stop(client: openai.OpenAI, model: str) -> None:
    options = {"model": model, "messages": QUESTION, "max_tokens": 48, "temperature": 0}
    whole = client.chat.completions.create(**options).choices[0].message.content
    stop = whole[len(whole) // 2 :][:5]  # it need not begin or end with a token
    expected = whole[: whole.index(stop)]
    answer = client.chat.completions.create(**options, stop=[stop]).choices[0]
    assert (answer.message.content, answer.finish_reason) == (expected, "stop")
    chunks = list(client.chat.completions.create(**options, stop=stop, stream=True))
    assert content(chunks) == expected  # nothing of the stop string was shown and taken back
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_chat_continues_the_assistant(client: openai.OpenAI, model: str) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "The capital of France is"}]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=4, temperature=0)
    assert answer.choices[0].message.content.startswith(" Paris")


def test_chat_takes_content_parts(client: openai.OpenAI, model: str) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    options = {"model": model, "max_tokens": 16, "temperature": 0}
    answers = [client.chat.completions.create(messages=messages, **options) for messages in (QUESTION, parts)]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


# === Text completions ===


def test_completion(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=16, temperature=0)
    assert answer.object == "text_completion"
    assert " Paris" in answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 16


def test_completions_of_several_prompts_stream_by_index(client: openai.OpenAI, model: str) -> None:
    options = {
        "model": model,
        "prompt": [PROMPT, "1, 2, 3, 4,", "Once upon a time"],
        "max_tokens": 12,
        "temperature": 0,
    }
    whole = client.completions.create(**options)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    streamed = list(client.completions.create(**options, stream=True))
    for choice in whole.choices:
        assert text_of(streamed, choice.index) == choice.text


def text_of(chunks: list[Completion], index: int) -> str:
    return "".join(choice.text for chunk in chunks for choice in chunk.choices if choice.index == index)


def test_completion_of_token_ids(client: openai.OpenAI, model: str, smollm2: Server) -> None:
    ids = [token["id"] for token in smollm2.post("/tokenize", {"inputs": PROMPT}).json()]
    options = {"model": model, "max_tokens": 8, "temperature": 0}
    by_ids = client.completions.create(prompt=ids, **options)
    by_text = client.completions.create(prompt=PROMPT, **options)
    assert by_ids.choices[0].text == by_text.choices[0].text
    assert by_ids.usage.prompt_tokens == len(ids)


def test_completion_echo_and_logprobs(client: openai.OpenAI, model: str) -> None:
    options = {"model": model, "prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    plain = client.completions.create(**options, logprobs=2).choices[0]
    assert "".join(plain.logprobs.tokens) == plain.text
    assert plain.logprobs.text_offset[0] == 0
    assert all(len(top) == 2 and max(top.values()) <= 0 for top in plain.logprobs.top_logprobs)
    assert client.completions.create(**options, echo=True).choices[0].text == PROMPT + plain.text


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.8, "top_p": 0.9, "seed": 11},
        {"temperature": 1.2, "seed": 11, "extra_body": {"top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}},
        {"temperature": 0, "presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {"7042": -100}},
        {"temperature": 0, "extra_body": {"min_tokens": 12, "ignore_eos": True}},
    ],
)
def test_sampling_parameters_are_reproducible(client: openai.OpenAI, model: str, fields: dict[str, object]) -> None:
    texts = {
        client.completions.create(model=model, prompt=PROMPT, max_tokens=12, **fields).choices[0].text for _ in range(2)
    }
    assert len(texts) == 1
    assert texts != {""}


# === Errors ===


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"messages": []}, "messages"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 1000}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),  # without logprobs
        ({"modalities": ["audio"]}, "modalities"),
        ({"extra_body": {"temprature": 1}}, "temprature"),
    ],
)
def test_bad_requests_name_the_field(client: openai.OpenAI, model: str, fields: dict[str, object], names: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**{"model": model, "messages": QUESTION, "stream": stream, **fields})
        assert names in str(caught.value.body) or caught.value.code == "context_length_exceeded"
        assert isinstance(caught.value.body, dict)
        assert {"message", "type", "code", "param"} <= caught.value.body.keys()


def test_a_prompt_over_the_context_is_refused_with_numbers(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt="word " * 9000, max_tokens=5)
    assert caught.value.code == "context_length_exceeded"
    assert "8192" in str(caught.value)


def test_unknown_models_and_routes(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-9", messages=QUESTION)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    with pytest.raises(openai.NotFoundError):
        client.get("/no/such/route", cast_to=object)
    assert client.models.retrieve(model).id == model
    for alias in ("tgi", "dummy"):
        assert client.chat.completions.create(model=alias, messages=QUESTION, max_tokens=1).choices


def test_nothing_stays_behind(smollm2: Server) -> None:
    smollm2.assert_idle()
