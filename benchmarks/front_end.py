"""What the router does for the next turn of a conversation of 200,000 tokens, before the model sees a token.

    python benchmarks/front_end.py

Real HTTP, and a shard that costs nothing: each turn sends the whole conversation again, with some 200 tokens more, and
asks for one token. Measured is the time from the last byte of the body to the first of the answer: it has the parsing,
the template, the tokens, the prefix match, the plan and the commit in it, and the way back, which makes it an upper
bound. The cold figure is the same for conversations that the router has not seen: there, everything must be encoded.
The full encode is what a server without a memory spends on each turn's text: a call of Hugging Face's `tokenizers`.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import time
from typing import Any

from client import WORDS, percentile
from fake import Router, build, router
from make_model import smollm2_gguf, smollm2_safetensors
from report import milliseconds, save, table
from tokenizers import Tokenizer

CONTEXT = 1 << 20
WORDS_PER_MESSAGE = 600


class Conversation:
    """Messages that grow by a turn at a time."""

    def __init__(self, seed: int, num_words: int) -> None:
        self._source = random.Random(seed)
        self._messages = [self._message("system", WORDS_PER_MESSAGE)]
        for number in range(num_words // WORDS_PER_MESSAGE):
            self._messages.append(self._message(("user", "assistant")[number % 2], WORDS_PER_MESSAGE))

    def add_turn(self) -> None:
        """An answer and a question, of about 200 tokens together."""
        self._messages += [self._message("assistant", 80), self._message("user", 80)]

    def body(self) -> bytes:
        """The request, as the clients' libraries write it."""
        body: dict[str, Any] = {"model": "tgi", "messages": self._messages, "max_tokens": 1, "temperature": 0}
        return json.dumps(body).encode()

    def text(self) -> str:
        """The prompt, about as the model's template writes it."""
        return "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in self._messages)

    def _message(self, role: str, num_words: int) -> dict[str, str]:
        words = (self._word() for _ in range(num_words))
        return {"role": role, "content": " ".join(words) + ".\n"}

    def _word(self) -> str:
        # Numbers have a token for each digit: with some of them, tokens are as long as in English prose and code.
        return str(self._source.randrange(1000)) if self._source.random() < 0.2 else self._source.choice(WORDS)


def ask(server: Router, connection: socket.socket, body: bytes) -> tuple[float, dict[str, int]]:
    """Seconds from the body's end to the answer's beginning, and the answer's usage."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {server.address}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    sent = time.perf_counter()
    answer = connection.recv(1 << 16)
    seconds = time.perf_counter() - sent
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(1 << 16)
    head_bytes, _, rest = answer.partition(b"\r\n\r\n")
    length = int(head_bytes.lower().partition(b"content-length:")[2].split()[0])
    while len(rest) < length:
        rest += connection.recv(1 << 16)
    content = json.loads(rest)
    if "usage" not in content:
        raise RuntimeError(f"the router refused: {content}")
    usage = content["usage"]
    return seconds, {"prompt": usage["prompt_tokens"], "cached": usage["prompt_tokens_details"]["cached_tokens"]}


def full_encode_seconds(tokenizer: Tokenizer, text: str) -> float:
    """The median of five."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        tokenizer.encode(text)
        times.append(time.perf_counter() - began)
    return percentile(times, 0.5)


def measure(server: Router, options: argparse.Namespace) -> dict[str, Any]:
    """Cold conversations, then the turns of one of them."""
    host, port = server.address.rsplit(":", 1)
    words = options.words
    with socket.create_connection((host, int(port))) as connection:
        ask(server, connection, Conversation(0, 1000).body())  # warm-up of code paths
        cold = [ask(server, connection, Conversation(seed, words).body()) for seed in range(1, 1 + options.colds)]
        conversation = Conversation(options.colds, words)
        warm = []
        for _ in range(options.turns):
            conversation.add_turn()
            warm.append(ask(server, connection, conversation.body()))
    times = [seconds for seconds, _ in warm]
    new = [usage["prompt"] - usage["cached"] for _, usage in warm]
    prompts = [usage["prompt"] for _, usage in warm]
    tokenizer = Tokenizer.from_file(str(smollm2_safetensors() / "tokenizer.json"))
    encode = full_encode_seconds(tokenizer, Conversation(options.colds, words).text())
    return {
        "prompt_tokens": percentile(prompts, 0.5),
        "new_tokens": percentile(new, 0.5),
        "body_bytes": len(conversation.body()),
        "p50": percentile(times, 0.5),
        "p99": percentile(times, 0.99),
        "cold": percentile([seconds for seconds, _ in cold], 0.5),
        "full_encode": encode,
        "ratio": encode / percentile(times, 0.5),
    }


def main() -> None:
    """Starts the router and measures it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=117_000, help="of the conversation at first; some 1.6 tokens each")
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--colds", type=int, default=3)
    parser.add_argument("--name", default="front_end", help="of the result files")
    options = parser.parse_args()
    build("--bin", "anaphora-router")
    limits = ("--max-total-tokens", str(CONTEXT), "--max-batch-total-tokens", str(4 * CONTEXT))
    with router(smollm2_gguf(), *limits, "--max-batch-prefill-tokens", str(CONTEXT)) as server:
        row = measure(server, options)
    body = [
        f"{row['prompt_tokens']:.0f}",
        f"{row['new_tokens']:.0f}",
        f"{row['body_bytes'] / 1e6:.2f}",
        *(milliseconds(row[name]) for name in ("p50", "p99", "cold", "full_encode")),
        f"{row['ratio']:.0f}",
    ]
    header = [
        "prompt tokens",
        "new",
        "body MB",
        "warm p50 ms",
        "warm p99 ms",
        "cold ms",
        "full encode ms",
        "encode / warm p50",
    ]
    print(table(header, [body]))
    print(save(options.name, row, table(header, [body])))


if __name__ == "__main__":
    main()
