"""The release build of the router with a fake shard in it, whose steps take no time: what is left is the router's own.

The benchmarks of the router alone share this. Its CPU time is read from /proc, so that a figure "per core" counts the
router's seconds and nobody else's, kernel time included."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
_TICK = os.sysconf("SC_CLK_TCK")


def build(*targets: str) -> None:
    """Builds the router's `targets`, as cargo names them."""
    subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "anaphora-router", *targets], cwd=ROOT, check=True)


@dataclass(frozen=True)
class Router:
    """One that runs."""

    pid: int
    address: str

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def post(self, path: str, body: bytes) -> bytes:
        """The answer's body."""
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://{self.address}{path}", body, headers)
        with urllib.request.urlopen(request) as response:
            answer: bytes = response.read()
            return answer


@contextmanager
def router(model: Path, *arguments: str) -> Iterator[Router]:
    """Starts one for the tokenizer of `model`, and waits until it is ready."""
    program = ROOT / "target/release/anaphora-router"
    command = [program, "--model-path", model, "--fake", "--fake-step-ms", "0", "--port", "0", "--log-level", "warn"]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield Router(process.pid, ready["url"].removeprefix("http://"))
    finally:
        process.terminate()
        process.wait(30)
