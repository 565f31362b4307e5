"""Where a layer's parameters live, and how the tensors of a checkpoint get into them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from anaphora.parallel import ParallelGroup


@dataclass(frozen=True)
class Placement:
    """Where and how the parameters of a model are held; every layer is built with one."""

    group: ParallelGroup
    dtype: torch.dtype
    device: torch.device

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Memory for a parameter, not initialised; of the model's dtype unless another is given."""
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)


@dataclass(frozen=True)
class Part:
    """One tensor of a checkpoint: its shape there, and where this rank's share of it goes.

        checkpoint   [ ... | start .............. | ... ]   along `dim`
        destination        [ destination.shape[dim] ]       a view into a parameter

    The share of the last rank may be shorter than its destination; the rest is filled with zeros.
    """

    shape: tuple[int, ...]
    destination: Tensor
    dim: int = 0
    start: int = 0
    offset: float = 0.0  # added to what the checkpoint holds
    random_mean: float = 0.0  # around which dummy weights are drawn

    def load(self, tensor: Tensor) -> None:
        """Copies this rank's share of the checkpoint's tensor, converted to the parameter's dtype."""
        size = self.destination.shape[self.dim]
        start = min(self.start, self.shape[self.dim])
        share = tensor.narrow(self.dim, start, min(size, self.shape[self.dim] - start))
        length = share.shape[self.dim]
        self.destination.narrow(self.dim, 0, length).copy_(share)
        if self.offset:
            self.destination.add_(self.offset)
        self.destination.narrow(self.dim, length, size - length).zero_()
