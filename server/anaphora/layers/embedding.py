"""Token embedding and output head, divided over the ranks by rows of the vocabulary.

With V rows over N ranks, each rank holds ceil(V / N); the last one's surplus is zero and never seen outside.
"""

import anaphora_kernels
from anaphora_kernels.linear.cpu import PackedWeight
from torch import Tensor

from anaphora.layers.parameters import Part, Placement


class _VocabParallel:
    """The weight that both share: rows [start, start + local) of the vocabulary."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        placement: Placement,
        weight: Tensor | PackedWeight | None = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.group = placement.group
        self.local = -(-vocab_size // self.group.world_size)
        self.start = self.group.rank * self.local
        self.dtype = placement.dtype
        self.weight = placement.vocab_weight(self.local, hidden_size) if weight is None else weight

    def parts(self, name: str) -> dict[str, Part]:
        """The weight."""
        shape = (self.vocab_size, self.hidden_size)
        return {f"{name}.weight": Part(shape, self.weight[:], dim=0, start=self.start)}


class VocabParallelEmbedding(_VocabParallel):
    """Token ids to vectors."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """[T] int64, each below vocab_size -> [T, hidden_size]."""
        if self.group.world_size == 1:
            return anaphora_kernels.embedding(tokens, self.weight, self.dtype)
        local = tokens - self.start
        elsewhere = (local < 0) | (local >= self.local)
        out = anaphora_kernels.embedding(local.masked_fill(elsewhere, 0), self.weight, self.dtype)
        return self.group.all_reduce(out.masked_fill_(elsewhere.unsqueeze(1), 0.0))


class VocabParallelHead(_VocabParallel):
    """Vectors to logits; every rank gets all of them. A tied head is built with the embedding's weight."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """[n, hidden_size] -> [n, vocab_size]."""
        logits = self.group.all_gather(anaphora_kernels.linear(hidden, self.weight))
        return logits[:, : self.vocab_size]
