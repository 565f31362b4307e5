"""Server-sent events, as raw as a test needs them: to see what a stream says when something breaks in the middle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import requests

DONE = "[DONE]"


def events(response: requests.Response) -> Iterator[dict[str, Any] | str]:
    """The parsed `data:` of each event, or `DONE`; ends with the stream. Each line must be one of the protocol's."""
    for line in response.iter_lines():
        if not line or line.startswith(b":"):  # between events; a comment
            continue
        assert line.startswith(b"data:"), line
        data = line.removeprefix(b"data:").strip().decode()
        yield DONE if data == DONE else json.loads(data)


def take(stream: Iterator[dict[str, Any] | str], count: int) -> list[dict[str, Any] | str]:
    """The next `count` events."""
    return [next(stream) for _ in range(count)]


def text_of(received: list[dict[str, Any] | str]) -> str:
    """The text of the chunks of a `/v1/completions` stream."""
    return "".join(choice["text"] for event in received if isinstance(event, dict) for choice in event["choices"])
