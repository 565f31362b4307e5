"""What every layer of a forward pass may read besides its input: the step's rows, and their cells in the KV pool."""

from dataclasses import dataclass

from anaphora_kernels import AttentionMetadata
from anaphora_kernels.recording import select_rows
from torch import Tensor


@dataclass(frozen=True)
class SampledTokens:
    """S of a step's tokens: those whose hidden states are wanted."""

    indices: Tensor  # [S] int64, among the T of the step
    attention: AttentionMetadata  # of S rows of one query each


@dataclass(frozen=True)
class ForwardContext:
    """Built once per step by `batch.py`, handed down as an argument."""

    attention: AttentionMetadata  # rows, block tables and lengths; see anaphora_kernels.paged_attention
    kv_indices: Tensor  # [T] int64: the cell of the KV pool for each token of the step; see anaphora_kernels.kv_indices
    attention_backend: str | None = None  # a row of the registry, by name; None: the first that fits
    sampled: SampledTokens | None = None  # None: the hidden states of all tokens are wanted

    def select(self, query: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, AttentionMetadata]:
        """[T, ...] -> [S, ...]: what the last layer goes on with, once the keys and values of all T are stored."""
        if self.sampled is None:
            return query, residual, self.attention
        query, residual = select_rows((query, residual), self.sampled.indices)
        return query, residual, self.sampled.attention
