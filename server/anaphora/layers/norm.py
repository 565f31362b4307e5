"""Normalisation. Held whole by every rank."""

import anaphora_kernels
from torch import Tensor

from anaphora.layers.parameters import Part, Placement


class RmsNorm:
    """Root-mean-square normalisation over the last dimension, after adding to the residual stream."""

    def __init__(self, size: int, eps: float, placement: Placement) -> None:
        """`size` is the last dimension of what is normalised."""
        self.eps = eps
        self.weight = placement.empty(size)

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """Adds x [T, size] to the residual stream in place, and returns it normalised."""
        return anaphora_kernels.rms_norm(x, self.weight, self.eps, residual=residual)

    def parts(self, name: str) -> dict[str, Part]:
        """The weight."""
        return {f"{name}.weight": Part(tuple(self.weight.shape), self.weight, random_mean=1.0)}
