"""What every layer of a forward pass may read besides its input: the step's rows, and their cells in the KV pool."""

from dataclasses import dataclass

from anaphora_kernels import AttentionMetadata
from torch import Tensor


@dataclass(frozen=True)
class ForwardContext:
    """Built once per step by `batch.py`, handed down as an argument."""

    attention: AttentionMetadata  # rows, block tables and lengths; see anaphora_kernels.paged_attention
    kv_indices: Tensor  # [T] int64: the cell of the KV pool for each token of the step; see anaphora_kernels.kv_indices
    attention_backend: str | None = None  # a row of the registry, by name; None: the first that fits
