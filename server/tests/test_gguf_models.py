"""GGUF files of the architectures whose converter does more than rename, against the checkpoints they come from."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from anaphora.loader import LoadedModel, load_model
from anaphora.parallel import ParallelGroup
from held import held
from paged_driver import Driver
from safetensors.torch import load_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "rms_norm_eps": 1e-5,
}
ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
}
MODELS: dict[str, PreTrainedModel] = {
    "qwen3": Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "gemma3": Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, query_pre_attn_scalar=16, sliding_window=20, rope_parameters=ROPE)
    ),
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
INSIDE = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
NORMS = {
    "qwen3": {"post_attention_layernorm": "ffn_norm"},
    "gemma3": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}


def gguf_name(architecture: str, name: str) -> str:
    """As llama.cpp's converter renames it."""
    stem = name.removesuffix(".weight")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.weight"
    layer, inside = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{(INSIDE | NORMS[architecture])[inside]}.weight"


def write_gguf(architecture: str, saved: Path, path: Path) -> None:
    """What llama.cpp's converter makes of a checkpoint: Gemma's norms are stored with 1 added."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_key_length(SIZES["head_dim"])
    writer.add_value_length(SIZES["head_dim"])
    writer.add_layer_norm_rms_eps(SIZES["rms_norm_eps"])
    if architecture == "gemma3":
        writer.add_sliding_window(20)
        writer.add_rope_freq_base(5000.0)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)
    for name, tensor in load_file(saved / "model.safetensors").items():
        array = tensor.numpy()
        if architecture == "gemma3" and name.endswith("norm.weight"):
            array = array + np.float32(1)
        writer.add_tensor(gguf_name(architecture, name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(path: Path) -> LoadedModel:
    return load_model(path, dtype="float32", device=torch.device("cpu"), group=ParallelGroup())


@pytest.mark.parametrize("architecture", MODELS)
def test_a_gguf_file_gives_the_model_that_was_converted(architecture: str, tmp_path: Path) -> None:
    theirs = MODELS[architecture].eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("norm.weight"):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(tmp_path / "saved")
    write_gguf(architecture, tmp_path / "saved", tmp_path / "model.gguf")
    ours, same = load(tmp_path / "model.gguf"), load(tmp_path / "saved")
    assert ours.config.windows == same.config.windows
    parts = same.model.parts()
    for name, part in ours.model.parts().items():
        torch.testing.assert_close(held(part), held(parts[name]), rtol=0, atol=2e-7, msg=name)
    prompt = list(range(90))
    with torch.inference_mode():
        expected = theirs(torch.tensor([prompt])).logits[0]
    torch.testing.assert_close(Driver(ours.model).prompt_logits(prompt, 32), expected, rtol=1e-4, atol=1e-4)
