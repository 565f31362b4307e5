"""Model files that are missing, cut off, corrupt or mis-shaped: exit code 3 and one paragraph, before any spawn.

And those that need no weights (`--load-format dummy`), and names that nobody knows.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import Server
from models import anaphora_command, smollm2_gguf, tiny_llama, tiny_mistral

BAD_MODEL = 3
WEIGHTS = "model.safetensors"


def serve(*arguments: str | Path) -> tuple[int, str, bool]:
    """Runs `anaphora serve` to its end: exit code, stderr, whether it ever had a child."""
    command = [*anaphora_command(), "serve", *map(str, arguments), "--device", "cpu", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    had_child = False
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        try:
            had_child |= bool(psutil.Process(process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.002)
    process.kill()
    _, errors = process.communicate()
    return process.returncode, errors, had_child


def assert_refused(path: Path, *words: str) -> None:
    """Exit code 3, one paragraph with all of `words`, nothing spawned, and quickly."""
    code, errors, had_child = serve(path)
    assert code == BAD_MODEL, errors
    paragraphs = [paragraph for paragraph in errors.strip().split("\n\n") if paragraph]
    assert len(paragraphs) == 1, errors
    for word in words:
        assert word in errors, f"{word!r} is not in: {errors}"
    assert "panicked" not in errors
    assert "Traceback" not in errors
    assert not had_child


# === Safetensors directories ===


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the tiny Llama, to be broken."""
    return Path(shutil.copytree(tiny_llama(), tmp_path / "model"))


def read_safetensors(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_safetensors(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_header(model: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    header, data = read_safetensors(model / WEIGHTS)
    edit(header)
    write_safetensors(model / WEIGHTS, header, data)


def edit_config(model: Path, **fields: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_truncated(model: Path) -> None:
    path = model / WEIGHTS
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[: whole // 2])
    assert_refused(model, WEIGHTS, f"{whole:,}", f"{whole // 2:,}")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"not a safetensors file at all", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 4) + b"{{{{"],
    ids=["empty", "one byte", "text", "huge header", "no JSON"],
)
def test_corrupt_header(model: Path, data: bytes) -> None:
    (model / WEIGHTS).write_bytes(data)
    assert_refused(model, WEIGHTS)


def test_missing_tensor(model: Path) -> None:
    """Without a hole in the data: the file is in order, but for the model that it should be."""
    name = "model.layers.1.mlp.up_proj.weight"
    header, data = read_safetensors(model / WEIGHTS)
    begin, end = header.pop(name)["data_offsets"]
    for tensor in header.values():
        if "data_offsets" in tensor and tensor["data_offsets"][0] >= end:
            tensor["data_offsets"] = [offset - (end - begin) for offset in tensor["data_offsets"]]
    write_safetensors(model / WEIGHTS, header, data[:begin] + data[end:])
    assert_refused(model, name, "176, 64")


def test_hole_in_the_data(model: Path) -> None:
    edit_header(model, lambda header: header.pop("model.layers.1.mlp.up_proj.weight"))
    assert_refused(model, WEIGHTS)


def test_misshaped_tensor(model: Path) -> None:
    name = "model.layers.0.self_attn.k_proj.weight"

    def transpose(header: dict[str, Any]) -> None:
        header[name]["shape"].reverse()

    edit_header(model, transpose)
    assert_refused(model, WEIGHTS, name, "32, 64", "64, 32")  # expected and found


def test_config_that_does_not_fit_the_weights(model: Path) -> None:
    edit_config(model, intermediate_size=192)
    assert_refused(model, "mlp", "192", "176")


def test_tensor_outside_the_file(model: Path) -> None:
    def move(header: dict[str, Any]) -> None:
        header["model.norm.weight"]["data_offsets"] = [10**9, 10**9 + 256]

    edit_header(model, move)
    assert_refused(model, WEIGHTS, "model.norm.weight")


def test_missing_config(model: Path) -> None:
    (model / "config.json").unlink()
    assert_refused(model, "config.json")


def test_config_that_is_no_json(model: Path) -> None:
    (model / "config.json").write_text("{")
    assert_refused(model, "config.json")


def test_unknown_architecture(model: Path) -> None:
    edit_config(model, architectures=["GPT9ForCausalLM"], model_type="gpt9")
    assert_refused(model, "GPT9ForCausalLM", "LlamaForCausalLM")


@pytest.mark.parametrize(
    ("architecture", "words"),
    [("Qwen3MoeForCausalLM", "dense"), ("Gemma3ForConditionalGeneration", "text-only")],
)
def test_relatives_that_cannot_be_served(model: Path, architecture: str, words: str) -> None:
    edit_config(model, architectures=[architecture])
    assert_refused(model, architecture, "Qwen3ForCausalLM, Gemma3ForCausalLM", words)


def test_missing_weights(model: Path) -> None:
    (model / WEIGHTS).unlink()
    assert_refused(model, "safetensors")


def test_missing_file_of_several(tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_mistral(), tmp_path / "model"))
    part = sorted(model.glob("model-*.safetensors"))[2]
    part.unlink()
    assert_refused(model, part.name)


def test_missing_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert_refused(model, "tokenizer.json")


# === GGUF files ===


def test_truncated_gguf(tmp_path: Path) -> None:
    """The header is whole, the last tensors are not there."""
    path = tmp_path / "short.gguf"
    with smollm2_gguf().open("rb") as source:
        path.write_bytes(source.read(60_000_000))
    assert_refused(path, "short.gguf", "60,000,000")


@pytest.mark.parametrize("size", [0, 3, 24, 5000])
def test_gguf_cut_in_its_header(tmp_path: Path, size: int) -> None:
    path = tmp_path / "short.gguf"
    with smollm2_gguf().open("rb") as source:
        path.write_bytes(source.read(size))
    assert_refused(path, "short.gguf")


def test_not_a_gguf(tmp_path: Path) -> None:
    path = tmp_path / "picture.gguf"
    path.write_bytes(b"\x89PNG" + bytes(1000))
    assert_refused(path, "picture.gguf")


# === Names ===


def test_nothing_there() -> None:
    assert_refused(Path("/no/such/model"), "/no/such/model")


def test_unknown_name_lists_the_known_ones() -> None:
    code, errors, had_child = serve("gpt-9")
    assert code in {2, BAD_MODEL}
    assert "gpt-9" in errors
    assert "smollm2-135m" in errors
    assert not had_child


# === Without weights ===


def test_dummy_weights(model: Path, start: Callable[..., Server]) -> None:
    """A configuration alone is enough, and random weights are the same on every start."""
    (model / WEIGHTS).unlink()
    server = start(model, "--load-format", "dummy")
    answer = server.generate("Hello", max_new_tokens=8)
    assert answer["details"]["generated_tokens"] >= 1
    server.assert_idle()
