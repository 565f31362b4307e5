"""Fixtures: the servers that several test files share, and their logs in every failure report.

    smollm2   SmolLM2 from its GGUF file, as `make serve` starts it
    tiny      a tiny random Llama, traced to `collector`: quick, for all that is not about text
    start     starts further servers with flags of one's own; stops and checks them at the end of the test

Each server is stopped with SIGTERM when it is no longer needed, and must then exit with 0 and leave nothing
behind; before that, the shared ones must have all their blocks back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

# pytest imports these files by path (--import-mode=importlib); they import each other by name.
sys.path.insert(0, str(Path(__file__).parent))

from collector import Collector
from harness import Server, running_servers
from models import smollm2_gguf, tiny_llama


@pytest.fixture(scope="session")
def smollm2() -> Iterator[Server]:
    yield from _serve(smollm2_gguf())


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with Collector.listen() as collector:
        yield collector


@pytest.fixture(scope="session")
def tiny(collector: Collector) -> Iterator[Server]:
    yield from _serve(tiny_llama(), "--otlp-endpoint", collector.endpoint)


def _serve(*arguments: str | Path) -> Iterator[Server]:
    server = Server.start(*arguments)
    try:
        yield server
        server.assert_alive()
        server.assert_idle()
        server.stop()
    finally:
        server.destroy()


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """`Server.start`, undone at the end. A test that stops its server itself does so before it ends."""
    started: list[Server] = []

    def start_server(*arguments: str | Path) -> Server:
        server = Server.start(*arguments, wait_ready=False)
        started.append(server)
        server.wait_ready()
        return server

    try:
        yield start_server
        for server in started:
            if server.process.poll() is None:
                server.stop()
    finally:
        for server in started:
            server.destroy()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the log tail of every running server to the report of a failed test."""
    report = yield
    if report.failed:
        report.sections += [(f"log of {server.url}", server.log_tail()) for server in running_servers]
    return report
