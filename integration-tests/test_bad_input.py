"""Bad input gets a clear 4xx in the shape of the API that it was sent to, and nothing stays behind."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
from harness import Server

MEGABYTE = 1_000_000
FAMILIES = ("/generate", "/generate_stream", "/v1/completions", "/v1/chat/completions")


def assert_refused(response: requests.Response, path: str, *statuses: int) -> None:
    """A 4xx of `statuses`, with a sentence, in the shape of the path's API."""
    assert response.status_code in statuses, f"{response.status_code}: {response.text[:300]}"
    assert response.headers["content-type"].startswith("application/json")
    body = response.json()
    if path.startswith("/v1/"):
        assert body.keys() == {"error"}
        assert {"message", "type", "code", "param"} <= body["error"].keys()
        message, kind = body["error"]["message"], body["error"]["type"]
    else:
        assert body.keys() == {"error", "error_type"}
        message, kind = body["error"], body["error_type"]
    assert message
    assert kind
    assert "panicked" not in message
    assert len(message) < 2000  # it does not send the input back


def body_for(path: str, text: Any, **parameters: Any) -> dict[str, Any]:
    """A request that would be right, were it not for `text` or `parameters` (given by TGI's names)."""
    if path.startswith("/v1/"):
        renamed = {{"max_new_tokens": "max_tokens"}.get(name, name): value for name, value in parameters.items()}
        content = {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text}
        return {"model": "tgi", "max_tokens": 4, **content, **renamed}
    return {"inputs": text, "parameters": {"max_new_tokens": 4, **parameters}}


def means(path: str) -> int:
    """The status for what a request means: TGI says 422, OpenAI 400."""
    return 400 if path.startswith("/v1/") else 422


NUMBERS = b'{"inputs": "a", "prompt": "a", "model": "tgi", "temperature": NUMBER, "parameters": {"top_p": NUMBER}}'
RAW_BODIES = {
    "empty": b"",
    "blank": b"   ",
    "not JSON": b"hello",
    "cut off": b'{"inputs": "he',
    "two documents": b'{"inputs": "a"} {"inputs": "b"}',
    "invalid UTF-8": b'{"inputs": "\xff\xfe", "prompt": "\xff", "model": "tgi"}',
    "lone surrogate": b'{"inputs": "\\ud800", "prompt": "\\ud800", "model": "tgi", "messages": []}',
    **{name: NUMBERS.replace(b"NUMBER", name.encode()) for name in ("NaN", "Infinity", "-Infinity", "1e400")},
    "deep": b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "an array": b"[1, 2, 3]",
    "null": b"null",
    "a string": b'"hello"',
}


@pytest.mark.parametrize("name", RAW_BODIES)
@pytest.mark.parametrize("path", FAMILIES)
def test_bodies_that_are_not_a_request(tiny: Server, path: str, name: str) -> None:
    response = tiny.post(path, data=RAW_BODIES[name], headers={"content-type": "application/json"})
    assert_refused(response, path, 400, means(path))


BAD_TEXTS: dict[str, Any] = {"empty": "", "missing": None, "a number": 5, "an object": {"a": 1}}


@pytest.mark.parametrize("name", BAD_TEXTS)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/v1/completions"])
def test_bad_texts(tiny: Server, path: str, name: str) -> None:
    body = body_for(path, BAD_TEXTS[name])
    if name == "missing":
        body.pop("inputs", None)
        body.pop("prompt", None)
    assert_refused(tiny.post(path, body), path, means(path))


BAD_MESSAGES: dict[str, Any] = {
    "none": [],
    "not a list": "hello",
    "no role": [{"content": "hello"}],
    "unknown role": [{"role": "wizard", "content": "hello"}],
    "no content": [{"role": "user"}],
    "a number": [{"role": "user", "content": 5}],
    "an image": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}],
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_bad_messages(tiny: Server, name: str) -> None:
    path = "/v1/chat/completions"
    body = {"model": "tgi", "max_tokens": 4, "messages": BAD_MESSAGES[name]}
    assert_refused(tiny.post(path, body), path, 400)


BAD_PARAMETERS: list[dict[str, Any]] = [
    {"max_new_tokens": 0},
    {"max_new_tokens": -1},
    {"max_new_tokens": 10**30},
    {"max_new_tokens": 1.5},
    {"max_new_tokens": "four"},
    {"max_new_tokens": 1_000_000},
    {"temperature": -0.1},
    {"temperature": "hot"},
    {"top_p": -0.5},
    {"top_p": 1.01},
    {"top_k": -3},
    {"typical_p": 2.0},
    {"repetition_penalty": 0},
    {"repetition_penalty": -1},
    {"frequency_penalty": 3.0},
    {"seed": -1},
    {"seed": 2**64},
    {"stop": [""]},
    {"stop": ["x"] * 17},
    {"stop": ["x" * 257]},
    {"stop": [5]},
    {"best_of": 0},
    {"best_of": 9},
]
# On OpenAI routes a seed may be negative.
BAD_REQUESTS = [
    pytest.param(path, parameters, id=f"{path}-{json.dumps(parameters)[:40]}")
    for path in FAMILIES
    for parameters in BAD_PARAMETERS
    if not (path.startswith("/v1/") and parameters == {"seed": -1})
]


@pytest.mark.parametrize(("path", "parameters"), BAD_REQUESTS)
def test_bad_parameters(tiny: Server, path: str, parameters: dict[str, Any]) -> None:
    body = body_for(path, "hello", **parameters)
    response = tiny.post(path, body)
    assert_refused(response, path, means(path))
    (name,) = parameters
    named = "max_tokens" if path.startswith("/v1/") and name == "max_new_tokens" else name
    assert named in response.text or "context_length_exceeded" in response.text


@pytest.mark.parametrize("path", FAMILIES)
def test_ten_megabytes_are_too_long(tiny: Server, path: str) -> None:
    response = tiny.post(path, body_for(path, "word " * (10 * MEGABYTE // 5)))
    assert_refused(response, path, means(path))


@pytest.mark.parametrize("path", FAMILIES)
def test_forty_megabytes_are_too_large(tiny: Server, path: str) -> None:
    response = tiny.post(path, body_for(path, "x" * (40 * MEGABYTE)))
    assert_refused(response, path, 413)


@pytest.mark.parametrize("path", FAMILIES)
def test_other_content_types(tiny: Server, path: str) -> None:
    data = json.dumps(body_for(path, "hello"))
    response = tiny.post(path, data=data, headers={"content-type": "text/plain"})
    assert_refused(response, path, 415)


@pytest.mark.parametrize("path", FAMILIES)
def test_other_methods_and_routes(tiny: Server, path: str) -> None:
    assert_refused(tiny.get(path), path, 405)
    assert_refused(tiny.post(f"{path}/nothing", {}), path, 404)


@pytest.mark.parametrize("field", ["foo", "max_token", "tool_choices", "modalities", "audio", "store", "functions"])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_unknown_fields_are_not_ignored_where_they_matter(tiny: Server, path: str, field: str) -> None:
    """On OpenAI routes a field is honoured or refused by name; one that changes no answer (`store`) may be taken."""
    response = tiny.post(path, {**body_for(path, "hello"), field: ["audio"] if field == "modalities" else {"a": 1}})
    if field == "store" and response.status_code == 200:
        return
    assert_refused(response, path, 400)
    assert field in response.json()["error"]["message"]


def test_unknown_fields_on_tgi_routes_are_ignored(tiny: Server) -> None:
    """As TGI does: its clients send fields of later versions."""
    body = {**body_for("/generate", "hello", foo=1), "bar": {"a": []}}
    assert tiny.post("/generate", body).status_code == 200


@pytest.mark.parametrize("ids", [[512], [-1], [1, 2, 10**12], [[1], "a"], []])
def test_bad_token_ids(tiny: Server, ids: list[Any]) -> None:
    path = "/v1/completions"
    assert_refused(tiny.post(path, body_for(path, ids)), path, 400)


def test_nothing_stays_behind(tiny: Server) -> None:
    """And it serves as before."""
    tiny.assert_idle()
    assert tiny.generate("Hello", max_new_tokens=4)["details"]["generated_tokens"] == 4
    assert "panicked" not in tiny.read_log()
    assert "Traceback" not in tiny.read_log()
