"""The model that is measured, and what a step over it costs at least, in bytes and in operations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from anaphora.model_config import ModelConfig, read_hf_config

CONFIGS = Path(__file__).parent.parent / "configs"


_QUICK = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@dataclass(frozen=True)
class Shape:
    """A model's sizes; for `--quick` a very small one of the same kind."""

    config: ModelConfig
    path: Path  # a directory with its config.json

    @classmethod
    def named(cls, name: str, directory: Path, *, quick: bool) -> Shape:
        """`benchmarks/configs/NAME`, written to `directory`.

        Its positions go on to 262,144, whatever it was trained for: what the model says does not matter here.
        """
        raw = json.loads((CONFIGS / name / "config.json").read_text())
        raw |= {"max_position_embeddings": 262_144} | (_QUICK if quick else {})
        path = directory / name
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(raw))
        return cls(read_hf_config(path), path)

    @property
    def num_weights(self) -> int:
        """Parameters that a decoding step reads: all but the embedding."""
        c = self.config
        attention = c.hidden_size * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
        layer = attention + 3 * c.hidden_size * c.intermediate_size + 2 * c.hidden_size
        return c.num_layers * layer + c.vocab_size * c.hidden_size

    @property
    def num_layer_weights(self) -> int:
        """Parameters that every token of a prompt is multiplied with: no head."""
        return self.num_weights - self.config.vocab_size * self.config.hidden_size

    def kv_bytes(self, num_tokens: int, itemsize: int) -> int:
        """Keys and values of one layer."""
        return num_tokens * 2 * self.config.num_kv_heads * self.config.head_dim * itemsize

    def attention_operations(self, num_queries: int, context: int) -> int:
        """Of one layer: two products for each query and key that sees it, causal, the queries being the last."""
        pairs = num_queries * context - num_queries * (num_queries - 1) // 2
        return 4 * self.config.num_heads * self.config.head_dim * pairs

    def prompt_operations(self, num_new: int, context: int) -> int:
        """Of computing the last `num_new` of `context` tokens."""
        attention = self.config.num_layers * self.attention_operations(num_new, context)
        return 2 * self.num_layer_weights * num_new + attention
