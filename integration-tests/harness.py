"""A real `anaphora serve` under test: start it, talk to it, look inside it, stop it, and check that nothing is left.

Every server gets a fresh run directory and a mark in its environment. The mark is inherited by all its processes,
however they were started and whoever adopted them, so that "no orphan" is a look through /proc and not a guess by
parentage. Ports are the kernel's choice; no test waits by sleeping for a guessed time, but polls for what it
needs with a deadline."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import requests
from models import anaphora_command

READY_TIMEOUT_S = 120.0
REQUEST_TIMEOUT_S = 180.0
MARK = "ANAPHORA_TEST_MARK"

T = TypeVar("T")
Input = TypeVar("Input")
Output = TypeVar("Output")

# Those of this session that still run, for the log tails in failure reports.
running_servers: list[Server] = []


def wait_until(what: str, check: Callable[[], T], timeout_s: float = 10.0) -> T:
    """Polls `check` until it returns something true, and returns that; fails with `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what} (last: {result!r})")
        time.sleep(0.02)


def in_parallel(function: Callable[[Input], Output], inputs: Sequence[Input], width: int) -> list[Output]:
    """`function` of every input, `width` at a time, in threads; the results in order."""
    with ThreadPoolExecutor(width) as pool:
        return list(pool.map(function, inputs))


@dataclass(frozen=True)
class Metrics:
    """One scrape of `/metrics`: (name, labels, value) of each sample."""

    samples: tuple[tuple[str, Mapping[str, str], float], ...]

    @classmethod
    def parse(cls, text: str) -> Metrics:
        samples = []
        for line in text.splitlines():
            match = re.fullmatch(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)", line)
            if match:
                labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
                samples.append((match[1], labels, float(match[3])))
        return cls(tuple(samples))

    @property
    def names(self) -> set[str]:
        return {name for name, _, _ in self.samples}

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name with at least these labels; 0 if there is none (yet)."""
        return sum(v for n, own, v in self.samples if n == name and labels.items() <= own.items())

    @property
    def blocks(self) -> dict[str, int]:
        """KV blocks by state, and the total."""
        by_state = {state: int(self.total("anaphora_kv_blocks", state=state)) for state in ("free", "cached", "held")}
        return {**by_state, "total": int(self.total("anaphora_kv_blocks_total"))}


@dataclass
class Server:
    """A handle on one `anaphora serve`; use `start`."""

    process: subprocess.Popen[bytes]
    mark: str
    runtime_directory: Path
    log: Path
    url: str = ""

    # === Starting ===

    @classmethod
    def start(
        cls, *arguments: str | Path, environment: Mapping[str, str] | None = None, wait_ready: bool = True
    ) -> Server:
        """Starts `anaphora serve ARGUMENTS --port 0` and waits until it is ready.

        In float32 unless told otherwise, so that text can be compared with transformers'.
        """
        if not any(str(argument).startswith("--dtype") for argument in arguments):
            arguments = (*arguments, "--dtype", "float32")
        mark = uuid.uuid4().hex
        directory = Path(tempfile.mkdtemp(prefix="ana-"))  # short: it becomes part of socket paths
        log = directory / "log"
        runtime = directory / "run"
        runtime.mkdir(mode=0o700)
        own = {MARK: mark, "XDG_RUNTIME_DIR": str(runtime), "RUST_BACKTRACE": "0", **(environment or {})}
        command = [*anaphora_command(), "serve", *map(str, arguments), "--device", "cpu", "--port", "0"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **own}
            )
        server = cls(process, mark, runtime, log)
        running_servers.append(server)
        if wait_ready:
            server.wait_ready()
        return server

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Waits for the address in the log, then for `/health` to say 200."""

        def ready() -> bool:
            self.assert_alive()
            if not self.url:
                # The ready block names the address; lines before it may, too.
                match = re.search(r"http://127\.0\.0\.1:([1-9]\d*)", self.read_log())
                self.url = match[0] if match else ""
            return bool(self.url) and self.health() == 200

        try:
            wait_until("ready", ready, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_tail()}") from None

    def assert_alive(self) -> None:
        code = self.process.poll()
        assert code is None, f"anaphora serve ended with status {code}"

    # === Talking ===

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=REQUEST_TIMEOUT_S, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        """POSTs `body` as JSON, or `data=` as it is."""
        if body is not None:
            options["json"] = body
        return requests.post(self.url + path, timeout=REQUEST_TIMEOUT_S, **options)

    def generate(self, prompt: str, **parameters: Any) -> dict[str, Any]:
        """One `/generate` with details; the parsed answer."""
        response = self.post("/generate", {"inputs": prompt, "parameters": {"details": True, **parameters}})
        assert response.status_code == 200, f"{response.status_code}: {response.text[:500]}"
        answer: dict[str, Any] = response.json()
        return answer

    def stream(self, prompt: str, max_tokens: int, **fields: Any) -> requests.Response:
        """A streaming `/v1/completions` that does not stop at EOS; the caller reads (or closes) it."""
        body = {"model": "tgi", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        response = self.post("/v1/completions", {**body, "stream": True, **fields}, stream=True)
        assert response.status_code == 200, f"{response.status_code}: {response.text[:500]}"
        return response

    def health(self) -> int:
        """The status of `/health`; 0 if nobody answers."""
        try:
            return requests.get(f"{self.url}/health", timeout=5).status_code
        except requests.RequestException:
            return 0

    # === Looking inside ===

    def metrics(self) -> Metrics:
        return Metrics.parse(self.get("/metrics").text)

    def processes(self) -> list[psutil.Process]:
        """Every living process with this server's mark, the launcher included."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def find(self, part: str) -> list[psutil.Process]:
        """The processes that run `anaphora PART`: "router" or "shard"."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if part in process.cmdline()[1:4] and process.pid != self.process.pid:
                    found.append(process)
        return found

    def read_log(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def log_tail(self, num_lines: int = 60) -> str:
        lines = self.read_log().splitlines()[-num_lines:]
        return "\n".join([f"--- the server's log, last {len(lines)} lines", *lines, "---"])

    def assert_idle(self, timeout_s: float = 10.0) -> None:
        """Nothing runs or waits, and no block is held: the pool is back to its start, but for what it caches."""

        def idle() -> bool:
            metrics = self.metrics()
            blocks = metrics.blocks
            assert blocks["free"] + blocks["cached"] + blocks["held"] == blocks["total"] > 0, blocks
            running = metrics.total("anaphora_requests_running") + metrics.total("anaphora_requests_waiting")
            return blocks["held"] == 0 and running == 0

        try:
            wait_until("idle", idle, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; blocks: {self.metrics().blocks}\n{self.log_tail()}") from None

    # === Stopping ===

    def wait(self, timeout_s: float) -> int:
        """Waits for the end and returns the exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s:g} s\n{self.log_tail()}") from None

    def stop(self, timeout_s: float = 30.0) -> None:
        """SIGTERM, then: exit code 0, no process left, run directory gone."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.wait(timeout_s)
        assert code == 0, f"exit code {code}\n{self.log_tail()}"
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        """No process of this server lives, and its run directory is gone."""
        try:
            wait_until("no orphan process", lambda: not self.processes(), 5.0)
        except AssertionError as error:
            orphans = [(p.pid, p.cmdline()) for p in self.processes()]
            raise AssertionError(f"{error}: {orphans}\n{self.log_tail()}") from None
        left = [str(path.relative_to(self.runtime_directory)) for path in self.runtime_directory.rglob("*")]
        assert not left, f"left in the run directory: {left}\n{self.log_tail()}"

    def destroy(self) -> None:
        """Kills whatever lives and forgets the log: for fixtures, when a test is over, however it went."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        if self in running_servers:
            running_servers.remove(self)
        shutil.rmtree(self.runtime_directory.parent, ignore_errors=True)
