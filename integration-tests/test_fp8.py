"""A checkpoint in FP8, as llm-compressor writes it, says what the floats say that it stands for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Server
from models import tiny_llama
from prompts import TEXTS
from safetensors.torch import load_file, save_file

SCHEME = {"num_bits": 8, "type": "float", "symmetric": True}
QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": SCHEME | {"strategy": "channel", "dynamic": False},
            "input_activations": SCHEME | {"strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["lm_head"],
}


def test_it_is_served_anywhere(start: Callable[..., Server], tmp_path: Path) -> None:
    """Where nothing multiplies FP8, weights become floats on load; an attention backend is chosen by name."""
    compressed, plain = (Path(shutil.copytree(tiny_llama(), tmp_path / name)) for name in ("fp8", "plain"))
    tensors = load_file(plain / "model.safetensors")
    exact = dict(tensors)
    for name, weight in exact.items():
        if "proj" in name:
            scale = weight.abs().amax(1, keepdim=True) / 448
            tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale"] = scale
            exact[name] = tensors[name].float() * scale
    save_file(tensors, compressed / "model.safetensors")
    save_file(exact, plain / "model.safetensors")
    config = json.loads((compressed / "config.json").read_text())
    (compressed / "config.json").write_text(json.dumps(config | {"quantization_config": QUANTIZATION}))

    servers = [
        start(plain, "--dtype", "float32"),
        start(compressed, "--dtype", "float32", "--attention-backend", "sdpa", "--cuda-graphs", "0"),
    ]
    for text in TEXTS[:4]:
        answers = [server.generate(text, max_new_tokens=24, details=True)["details"]["tokens"] for server in servers]
        plain_ids, compressed_ids = ([token["id"] for token in tokens] for tokens in answers)
        assert len(plain_ids) == 24
        assert compressed_ids == plain_ids
