"""Two ranks over gloo compute what one rank computes."""

import json
import subprocess
import sys
from pathlib import Path

import parallel_rank
import pytest
import torch
from anaphora.layers.parameters import Placement
from anaphora.model_config import parse_hf_config
from anaphora.models import model_class
from anaphora.parallel import ParallelError, ParallelGroup
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

TINY = {
    "vocab_size": 211,  # odd: the last rank has a row less
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "attention_bias": True,
    "mlp_bias": True,
}
CONFIGS = [
    LlamaConfig(**TINY),
    LlamaConfig(**TINY | {"num_key_value_heads": 1}, tie_word_embeddings=True),  # both ranks hold the one KV head
]


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    models = []
    for index, config in enumerate(CONFIGS):
        torch.manual_seed(index)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.3)
        model.save_pretrained(tmp_path / str(index))
        models.append(tmp_path / str(index))
    script = [sys.executable, parallel_rank.__file__]
    rendezvous = f"file://{tmp_path}/rendezvous"
    ranks = [
        subprocess.Popen([*script, str(rank), "2", rendezvous, str(tmp_path), *map(str, models)]) for rank in (0, 1)
    ]
    for process in ranks:
        assert process.wait(timeout=120) == 0

    for index, model in enumerate(models):
        logits, tokens, fingerprint = parallel_rank.results(model, ParallelGroup())
        for rank in (0, 1):
            torch.testing.assert_close(
                load_file(tmp_path / f"{index}-{rank}.safetensors")["logits"], logits, rtol=1e-4, atol=1e-4
            )
            answer = json.loads((tmp_path / f"{index}-{rank}.json").read_text())
            said = parallel_rank.steps(model, ParallelGroup(), None) if rank == 0 else [[]] * 8
            assert answer == {"tokens": tokens, "fingerprint": fingerprint, "steps": said}


@pytest.mark.parametrize(
    ("change", "world_size", "message"),
    [
        ({"num_attention_heads": 3, "head_dim": 16}, 2, "num_attention_heads = 3 cannot be divided over 2 ranks"),
        ({"intermediate_size": 95}, 2, "intermediate_size = 95 cannot be divided"),
        ({"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}, 3, "3 ranks cannot share num_key_value"),
    ],
)
def test_what_cannot_be_divided_is_refused(change: dict[str, int], world_size: int, message: str) -> None:
    raw = LlamaConfig(**TINY, architectures=["LlamaForCausalLM"]).to_dict()
    config = parse_hf_config(raw | change, "config")
    placement = Placement(ParallelGroup(0, world_size), torch.float32, torch.device("cpu"))
    with pytest.raises(ParallelError, match=message):
        model_class(config.architecture)(config, placement)
