"""Every architecture against transformers, at tiny random configurations in float32: logits and greedy tokens.

To add one: a line in CONFIGS. transformers saves the weights, our loader reads them.
"""

from pathlib import Path

import pytest
import torch
from anaphora.loader import LoadedModel, load_model
from anaphora.model_config import GGUF_ARCHITECTURES, HF_ARCHITECTURES
from anaphora.models import MODELS
from anaphora.parallel import ParallelGroup
from paged_driver import Driver
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 211
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,  # large enough for distinct logits
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
QWEN3 = TINY | {"num_key_value_heads": 2, "head_dim": 24}
GEMMA3 = TINY | {
    "num_key_value_heads": 1,
    "head_dim": 24,
    "query_pre_attn_scalar": 40,
    "sliding_window": 20,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
    },
}
CONFIGS = {
    "llama": LlamaConfig(**TINY),
    "llama, 2 KV heads": LlamaConfig(**TINY | {"num_key_value_heads": 2}),
    "llama, 1 KV head, head_dim 24": LlamaConfig(**TINY | {"num_key_value_heads": 1, "head_dim": 24}),
    "llama, tied": LlamaConfig(**TINY, tie_word_embeddings=True),
    "llama, biases": LlamaConfig(**TINY | {"num_key_value_heads": 2}, attention_bias=True, mlp_bias=True),
    "llama, llama3 rope": LlamaConfig(**TINY, rope_parameters=LLAMA3),
    "llama, linear rope": LlamaConfig(
        **TINY, rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
    ),
    "mistral, window 20": MistralConfig(**TINY | {"num_key_value_heads": 2}, sliding_window=20),
    "mistral, no window": MistralConfig(**TINY | {"num_key_value_heads": 2}, sliding_window=None),
    "qwen3": Qwen3Config(**QWEN3),
    "qwen3, tied, biases, a window in the last layer": Qwen3Config(
        **QWEN3,
        tie_word_embeddings=True,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=20,
        max_window_layers=2,
    ),
    "gemma3": Gemma3TextConfig(**GEMMA3),
    "gemma3, untied, soft-capped logits": Gemma3TextConfig(
        **GEMMA3, tie_word_embeddings=False, final_logit_softcapping=3.0
    ),
}
CLASSES = {
    "llama": LlamaForCausalLM,
    "mistral": MistralForCausalLM,
    "qwen3": Qwen3ForCausalLM,
    "gemma3_text": Gemma3ForCausalLM,
}
PROMPT_LENGTHS = (70, 1, 17, 33)


@pytest.fixture(scope="module", params=CONFIGS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, LoadedModel]:
    """transformers' model with random weights, and ours from the files that it saved."""
    torch.manual_seed(7)
    config = CONFIGS[request.param]
    theirs = CLASSES[config.model_type](config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith(("norm.weight", "layernorm.weight", "bias")):  # transformers starts them at 1 and 0
                parameter += 0.3 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(path)
    return theirs, load(path)


def load(path: Path) -> LoadedModel:
    return load_model(path, dtype="float32", device=torch.device("cpu"), group=ParallelGroup())


def prompts() -> list[list[int]]:
    random = torch.Generator().manual_seed(3)
    return [torch.randint(3, VOCAB, (length,), generator=random).tolist() for length in PROMPT_LENGTHS]


def greedy(model: PreTrainedModel, prompt: list[int], num_tokens: int) -> list[int]:
    """transformers' continuation, by its own forward pass and without a cache."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(num_tokens):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_every_architecture_is_tested() -> None:
    assert {CLASSES[config.model_type].__name__ for config in CONFIGS.values()} == set(MODELS) == set(HF_ARCHITECTURES)
    assert {name for name, _ in GGUF_ARCHITECTURES.values()} < set(MODELS)


@pytest.mark.parametrize("chunk", [1, 7, 16, 512])
def test_logits(pair: tuple[PreTrainedModel, LoadedModel], chunk: int) -> None:
    theirs, ours = pair
    for prompt in prompts():
        with torch.inference_mode():
            expected = theirs(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(Driver(ours.model).prompt_logits(prompt, chunk), expected, rtol=1e-4, atol=1e-4)


def test_greedy_tokens(pair: tuple[PreTrainedModel, LoadedModel]) -> None:
    theirs, ours = pair
    expected = [greedy(theirs, prompt, 32) for prompt in prompts()]
    for chunk in (1, 7, 16, 512):
        assert Driver(ours.model).greedy(prompts(), 32, chunk) == expected  # all together
    for prompt, continuation in zip(prompts(), expected, strict=True):
        assert Driver(ours.model).greedy([prompt], 32, 16) == [continuation]  # one at a time
