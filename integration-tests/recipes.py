"""How the models of models.py are made; needs torch and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from prompts import TEXTS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TINY_VOCABULARY = 512
TINY_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)
_TINY_CONFIG: dict[str, Any] = {
    "vocab_size": TINY_VOCABULARY,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


def convert_smollm2(source: Path, directory: Path) -> None:
    """Writes the GGUF file `source` as a float32 Hugging Face directory."""
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    # It is no longer quantised: a loader must not look for packed tensors.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.architectures = ["LlamaForCausalLM"]
    model.save_pretrained(directory)
    _write_json(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    _write_smollm2_tokenizer(source, directory)


def _write_smollm2_tokenizer(gguf_path: Path, directory: Path, max_length: int | None = None) -> None:
    fields = GGUFReader(gguf_path).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    merges: list[str] = fields["tokenizer.ggml.merges"].contents()
    types: list[int] = fields["tokenizer.ggml.token_type"].contents()
    bpe = models.BPE(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[(left, right) for left, right in (merge.split(" ") for merge in merges)],
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # gguf.TokenType.CONTROL
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"].contents()],
            "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"].contents()],
            "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"].contents()],
            "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"].contents()],
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_length or fields["llama.context_length"].contents(),
            "chat_template": fields["tokenizer.chat_template"].contents(),
        },
    )


def write_tiny_llama(directory: Path) -> None:
    """Writes a random Llama with 3 layers and rope scaling, of which 64 positions are the original context."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = LlamaConfig(
        hidden_size=64, intermediate_size=176, num_hidden_layers=3, rope_parameters=rope, **_TINY_CONFIG
    )
    _save_tiny(LlamaForCausalLM(config), directory, seed=9, max_shard_size="1GB")
    _write_tiny_tokenizer(directory, add_bos=True)


def write_tiny_mistral(directory: Path) -> None:
    """Writes a random Mistral with 2 layers, heads of 32 (not 96 / 4), and its weights in several files."""
    config = MistralConfig(
        hidden_size=96,
        head_dim=32,
        intermediate_size=160,
        num_hidden_layers=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        sliding_window=None,
        **_TINY_CONFIG,
    )
    _save_tiny(MistralForCausalLM(config), directory, seed=8, max_shard_size="200KB")
    _write_tiny_tokenizer(directory, add_bos=False)


def write_tiny_qwen3(directory: Path) -> None:
    """Writes a random Qwen3 with 2 layers and heads of 32 (not 64 / 4)."""
    config = Qwen3Config(hidden_size=64, head_dim=32, intermediate_size=160, num_hidden_layers=2, **_TINY_CONFIG)
    _save_tiny(Qwen3ForCausalLM(config), directory, seed=7, max_shard_size="1GB")
    _write_tiny_tokenizer(directory, add_bos=False)


def write_tiny_gemma3(directory: Path) -> None:
    """Writes a random Gemma 3 with 3 layers, two of which see 24 tokens."""
    config = Gemma3TextConfig(
        hidden_size=64,
        head_dim=32,
        query_pre_attn_scalar=32,
        intermediate_size=160,
        num_hidden_layers=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        sliding_window=24,
        **_TINY_CONFIG,
    )
    _save_tiny(Gemma3ForCausalLM(config), directory, seed=7, max_shard_size="1GB")
    _write_tiny_tokenizer(directory, add_bos=True)


def write_long_llama(tokenizer_source: Path, directory: Path) -> None:
    """Writes a random Llama of 262,144 positions, small enough for a CPU, with the tokenizer of a GGUF file."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=262144,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    _save_tiny(LlamaForCausalLM(config), directory, seed=7, max_shard_size="1GB")
    _write_smollm2_tokenizer(tokenizer_source, directory, max_length=config.max_position_embeddings)


def _save_tiny(model: PreTrainedModel, directory: Path, *, seed: int, max_shard_size: str) -> None:
    _spread_weights(model, torch.Generator().manual_seed(seed))
    model.float().save_pretrained(directory, max_shard_size=max_shard_size)
    _write_json(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})


def _spread_weights(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Random weights under which context matters and the two best logits are well apart.

    transformers' initialisation (standard deviation 0.02) makes all logits nearly equal, so that rounding would
    choose.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:  # norms, which begin at what multiplies by 1
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
            else:
                scale = weight.shape[1] if model.config.model_type == "gemma3_text" else 1  # undone in its forward pass
                fan_in = scale if "embed_tokens" in name else weight.shape[1]
                gain = 4.0 if "lm_head" in name else 1.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * (gain / fan_in**0.5))


def _write_tiny_tokenizer(directory: Path, *, add_bos: bool) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Enough merges exist in this text: the trainer fills the vocabulary exactly.
    tokenizer.train_from_iterator(TEXTS, trainer)
    if tokenizer.get_vocab_size() != TINY_VOCABULARY:
        raise ValueError(f"the tiny tokenizer has {tokenizer.get_vocab_size()} tokens, not {TINY_VOCABULARY}")
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 8192,
            "chat_template": TINY_CHAT_TEMPLATE,
        },
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
