"""A tiny model with random weights, which needs no file but a configuration."""

import json
from pathlib import Path

import pytest
import torch
from anaphora import _native
from anaphora.loader import LoadedModel, load_model
from anaphora.parallel import ParallelGroup

TINY_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture(scope="session")
def tiny_llama_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a config.json, for `load_format="dummy"`."""
    path = tmp_path_factory.mktemp("tiny-llama")
    (path / "config.json").write_text(json.dumps(TINY_LLAMA), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_llama(tiny_llama_path: Path) -> LoadedModel:
    cpu = torch.device("cpu")
    return load_model(tiny_llama_path, load_format="dummy", dtype="float32", device=cpu, group=ParallelGroup())


@pytest.fixture(autouse=True, scope="session")
def few_threads() -> None:
    """Tiny tensors gain nothing from threads, and other processes may be testing too."""
    torch.set_num_threads(1)
    _native.set_num_threads(1)
