"""Prints the path of SmolLM2-135M-Instruct as a float32 Hugging Face directory, which is made from the GGUF file if
missing.

    python benchmarks/make_model.py

Peers (transformers, vLLM) read this directory; the recipe is the integration tests' (`integration-tests/models.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "integration-tests"))

from models import long_llama, smollm2_gguf, smollm2_safetensors

__all__ = ["long_llama", "smollm2_gguf", "smollm2_safetensors"]

if __name__ == "__main__":
    print(smollm2_safetensors())
