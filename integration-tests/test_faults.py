"""What breaks, breaks loudly, and mends: shards and routers that die or hang, clients that leave, signals."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
import requests
from harness import Server, wait_until
from models import anaphora_command, tiny_llama
from sse import DONE, events, take

Start = Callable[..., Server]
# More than any test waits for: a stream of this length is in the middle when something happens to it.
LONG = 7000
RECOVERY_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def victim() -> Iterator[Server]:
    """One server for all faults that it must survive."""
    server = Server.start(tiny_llama(), "--step-timeout", "4")
    try:
        yield server
        server.assert_alive()
        server.assert_idle()
        server.stop()
    finally:
        server.destroy()


def assert_recovers(server: Server) -> None:
    wait_until("health 200 again", lambda: server.health() == 200, RECOVERY_TIMEOUT_S)
    answer = server.generate("Hello", max_new_tokens=4)
    assert answer["details"]["generated_tokens"] == 4
    server.assert_idle()


# === The shard ===


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_shard_lost_in_the_middle_of_streams(victim: Server, signal_number: signal.Signals) -> None:
    """Both APIs' streams end with an explicit error, `/health` says 503, and then all is well again."""
    before = victim.generate("Hello", max_new_tokens=16)["generated_text"]
    openai_stream = events(victim.stream("Hello there", LONG))
    body = {"inputs": "Hello here", "parameters": {"max_new_tokens": LONG}}
    tgi_stream = events(victim.post("/generate_stream", body, stream=True))
    take(openai_stream, 3)
    take(tgi_stream, 1)
    (shard,) = victim.find("shard")
    shard.send_signal(signal_number)

    rest = list(openai_stream)
    assert DONE not in rest
    error = rest[-1]["error"]
    assert error["type"] == "server_error"
    assert error["code"] == "engine_lost"
    assert all(choice["finish_reason"] is None for event in rest[:-1] for choice in event["choices"])
    ending = list(tgi_stream)[-1]
    # A short greedy answer may have ended by itself before the fault.
    assert ending.get("error_type") == "generation" or ending.get("generated_text") is not None
    wait_until("health 503", lambda: victim.health() == 503, 2.0)
    refused = victim.post("/generate", {"inputs": "Hello", "parameters": {"max_new_tokens": 1}})
    if refused.status_code != 200:  # unless it recovered just now
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]

    assert_recovers(victim)
    assert victim.generate("Hello", max_new_tokens=16)["generated_text"] == before
    assert not shard.is_running() or shard.status() == psutil.STATUS_ZOMBIE
    assert victim.metrics().total("anaphora_shard_losses_total") >= 1


def test_request_in_the_queue_of_a_lost_shard_gets_a_real_status(victim: Server) -> None:
    """No byte was sent yet: a 5xx with Retry-After, or the answer by the successor; never a cut connection."""
    (shard,) = victim.find("shard")
    shard.suspend()
    connection = http.client.HTTPConnection(victim.url.removeprefix("http://"), timeout=RECOVERY_TIMEOUT_S)
    body = {"inputs": "Hello", "parameters": {"max_new_tokens": 4}}
    connection.request("POST", "/generate", json.dumps(body), {"content-type": "application/json"})
    wait_until("the request is in", lambda: victim.metrics().total("anaphora_requests_running") >= 1)
    shard.kill()
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.status != 200:
        assert response.status in {424, 503}
        assert int(response.headers["retry-after"]) >= 1
        assert {"error", "error_type"} == answer.keys()
    assert_recovers(victim)


# === The router ===


def test_router_killed(victim: Server) -> None:
    """The launcher starts another at the same address; the shard lives on."""
    (shard,) = victim.find("shard")
    (router,) = victim.find("router")
    stream = events(victim.stream("Hello", LONG))
    take(stream, 2)
    router.kill()
    with pytest.raises(requests.RequestException):
        list(stream)
    assert_recovers(victim)
    assert victim.find("shard") == [shard]
    assert victim.find("router") != [router]


# === Clients ===


def test_client_that_leaves_a_stream_frees_its_row(victim: Server) -> None:
    response = victim.stream("Once upon a time", LONG)
    stream = events(response)  # kept: an iterator that is dropped closes its connection
    take(stream, 3)
    assert victim.metrics().blocks["held"] > 0
    response.close()
    victim.assert_idle(timeout_s=2.0)
    assert victim.metrics().total("tgi_request_failure", err="dropped") >= 1


def test_client_that_leaves_before_the_answer_frees_its_row(victim: Server) -> None:
    host, port = victim.url.removeprefix("http://").split(":")
    body = json.dumps({"model": "tgi", "prompt": "Hello", "max_tokens": LONG, "ignore_eos": True})
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        wait_until("it runs", lambda: victim.metrics().total("anaphora_requests_running") == 1)
    victim.assert_idle(timeout_s=2.0)


def test_clients_that_leave_during_a_long_prefill(victim: Server) -> None:
    """What was computed stays as cache; nothing is held."""
    host, port = victim.url.removeprefix("http://").split(":")
    for number in range(4):
        body = json.dumps({"model": "tgi", "prompt": f"{number} word " * 1500, "max_tokens": 4})
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
            time.sleep(0.05 * number)  # somewhere in admission, in the queue or in a chunk
    victim.assert_idle(timeout_s=10.0)
    assert_recovers(victim)


# === Signals ===


def test_sigterm_drains_and_exits_with_0(start: Start) -> None:
    server = start(tiny_llama())
    stream = events(server.stream("Once upon a time", 1500))
    received = take(stream, 2)
    server.process.send_signal(signal.SIGTERM)
    wait_until("not ready any more", lambda: server.health() in {0, 503}, 5.0)
    with pytest.raises((requests.RequestException, AssertionError)):
        server.generate("Hello", max_new_tokens=4)
    received += list(stream)
    assert received[-1] == DONE
    assert [e["choices"][0]["finish_reason"] for e in received[:-1] if e["choices"]][-1] == "length"
    server.stop()


def test_second_signal_ends_at_once(start: Start) -> None:
    server = start(tiny_llama())
    stream = events(server.stream("Once upon a time", LONG))
    take(stream, 2)
    server.process.send_signal(signal.SIGINT)
    wait_until("not ready any more", lambda: server.health() in {0, 503}, 5.0)
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGINT)
    server.wait(timeout_s=3.0)
    server.assert_nothing_left()


def test_launcher_killed_leaves_no_process(start: Start) -> None:
    server = start(tiny_llama())
    assert len(server.processes()) >= 3
    server.process.kill()
    server.wait(timeout_s=5.0)
    wait_until("no orphan process", lambda: not server.processes(), 10.0)


# === The address ===


def test_address_in_use_is_exit_code_4() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [*anaphora_command(), "serve", str(tiny_llama()), "--device", "cpu", "--port", port]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 4, result.stderr
    assert port in result.stderr
