"""What an operator sees: the ready block, metrics, health, and one trace from the request into the shard."""

from __future__ import annotations

import re
import secrets
import shlex
import subprocess

import pytest
from collector import Collector, Span
from harness import Metrics, Server, wait_until

REQUEST = {"model": "tgi", "prompt": "The quick brown fox", "max_tokens": 8, "temperature": 0, "ignore_eos": True}

COUNTERS = {
    "tgi_request_count",
    "tgi_request_success",
    "anaphora_prefix_cache_tokens_total",
    "anaphora_preemptions_total",
    "tgi_batch_inference_count",
    "tgi_batch_inference_success",
}
GAUGES = {
    "tgi_queue_size",
    "tgi_batch_current_size",
    "tgi_batch_current_max_tokens",
    "anaphora_kv_blocks",
    "anaphora_kv_blocks_total",
    "anaphora_requests_running",
    "anaphora_requests_waiting",
}
HISTOGRAMS = {
    "tgi_request_duration",
    "tgi_request_validation_duration",
    "tgi_request_queue_duration",
    "tgi_request_inference_duration",
    "tgi_request_mean_time_per_token_duration",
    "tgi_request_input_length",
    "tgi_request_max_new_tokens",
    "tgi_request_generated_tokens",
    "tgi_batch_next_size",
    "tgi_batch_inference_duration",
    "anaphora_time_to_first_token_seconds",
    "anaphora_inter_token_latency_seconds",
    "anaphora_request_queue_seconds",
}


@pytest.fixture
def change(tiny: Server) -> tuple[Metrics, Metrics]:
    """The metrics before and after one completion of 8 tokens."""
    tiny.assert_idle()
    before = tiny.metrics()
    response = tiny.post("/v1/completions", REQUEST)
    assert response.status_code == 200, response.text
    tiny.assert_idle()
    return before, tiny.metrics()


def test_metrics_are_there_with_their_model(change: tuple[Metrics, Metrics]) -> None:
    _, after = change
    wanted = COUNTERS | GAUGES | {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
    assert wanted <= after.names, wanted - after.names
    nameless = {name for name, labels, _ in after.samples if name in wanted and not labels.get("model")}
    assert not nameless
    states = {labels["state"] for name, labels, _ in after.samples if name == "anaphora_kv_blocks"}
    assert states == {"free", "cached", "held"}


def test_metrics_count_one_request(change: tuple[Metrics, Metrics]) -> None:
    before, after = change

    def grew(name: str, **labels: str) -> float:
        return after.total(name, **labels) - before.total(name, **labels)

    assert grew("tgi_request_count") == 1
    assert grew("tgi_request_success") == 1
    assert grew("tgi_request_generated_tokens_sum") == 8
    assert grew("anaphora_time_to_first_token_seconds_count") == 1
    assert grew("anaphora_inter_token_latency_seconds_count") == 7
    prompt = grew("tgi_request_input_length_sum")
    assert grew("anaphora_prefix_cache_tokens_total") == prompt  # hit and miss together
    assert grew("tgi_batch_inference_count") >= 8
    assert 0 < grew("anaphora_time_to_first_token_seconds_sum") < 30


def test_errors_are_counted_by_cause(tiny: Server) -> None:
    before = tiny.metrics().total("tgi_request_failure", err="validation")
    tiny.post("/generate", {"inputs": "", "parameters": {}})
    assert tiny.metrics().total("tgi_request_failure", err="validation") == before + 1


def test_one_trace_from_the_request_into_the_shard(tiny: Server, collector: Collector) -> None:
    trace_id, parent_id = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"traceparent": f"00-{trace_id}-{parent_id}-01"}
    assert tiny.post("/v1/completions", REQUEST, headers=headers).status_code == 200

    def complete() -> list[Span]:
        """Batches come every few seconds, from two processes."""
        spans = collector.spans(trace_id)
        has_request = any(span.parent_id == parent_id for span in spans)
        return spans if has_request and any(span.name.startswith("shard") for span in spans) else []

    spans = wait_until("spans of router and shard", complete, 20.0)
    by_id = {span.span_id: span for span in spans}
    (request,) = [span for span in spans if span.parent_id == parent_id]
    assert "/v1/completions" in request.name
    shard = next(span for span in spans if span.name.startswith("shard"))
    assert shard.service != request.service
    # Up from the shard's span: every parent is in the trace, and the last is the request.
    chain = [shard]
    while (parent := by_id.get(chain[-1].parent_id)) is not None:
        chain.append(parent)
    assert chain[-1] == request, [span.name for span in chain]
    assert len(chain) >= 3  # shard, step, request


def test_health_and_information(tiny: Server) -> None:
    assert tiny.get("/health").status_code == 200
    assert tiny.get("/metrics").headers["content-type"].startswith("text/plain")
    info = tiny.get("/info").json()
    for field in ("model_id", "max_concurrent_requests", "max_input_tokens", "max_total_tokens", "version", "router"):
        assert field in info
    models = tiny.get("/v1/models").json()
    assert models["object"] == "list"
    assert [model["object"] for model in models["data"]] == ["model"]


def test_ready_block(smollm2: Server) -> None:
    """At most 15 lines, with everything a first user needs; the phases before it in order."""
    log = smollm2.read_log()
    position = -1
    for phase in ("resolve", "verify", "load", "warm", "size"):
        match = re.compile(phase, re.IGNORECASE).search(log, position + 1)
        assert match, f"{phase} is not in the log after {log[:position]!r}"
        position = match.start()
    block = log[log.index("anaphora serves") :]
    block = block[: block.index("\n\n")] if "\n\n" in block else block
    assert "curl" in block
    for word in ("float32", "8192", "prefix cache"):
        assert re.search(word, block.replace(",", ""), re.IGNORECASE), word
    assert block.count("\n") <= 15


def test_the_curl_of_the_ready_block_works(smollm2: Server) -> None:
    """As a first user would: copy, paste."""
    lines = smollm2.read_log().splitlines()
    first = next(index for index, line in enumerate(lines) if line.strip().startswith("curl "))
    command = lines[first].strip()
    while command.endswith("\\"):
        first += 1
        command = command[:-1] + lines[first].strip()
    result = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert '"choices"' in result.stdout or '"generated_text"' in result.stdout
