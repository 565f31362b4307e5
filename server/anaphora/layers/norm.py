"""Normalisation. Held whole by every rank."""

import anaphora_kernels
import torch
from torch import Tensor

from anaphora.layers.parameters import Part, Placement


class RmsNorm:
    """Root-mean-square normalisation over the last dimension, after adding to the residual stream."""

    def __init__(self, size: int, eps: float, placement: Placement, *, offset: float = 0.0) -> None:
        """`size` is the last dimension of what is normalised.

        `offset` is added to the checkpoint's weights: Gemma stores theirs less 1, in a dtype that has no digits for the
        sum, and multiplies in float32. So they are held in float32.
        """
        self.eps = eps
        self.offset = offset
        self.weight = placement.empty(size, dtype=torch.float32 if offset else None)

    def __call__(self, x: Tensor | None, residual: Tensor | None = None) -> Tensor:
        """x [T, size] normalised; with a residual stream, x (if any) is added to it in place, and the sum taken."""
        if x is None:
            x, residual = residual, None
        assert x is not None
        return anaphora_kernels.rms_norm(x, self.weight, self.eps, residual=residual)

    def parts(self, name: str) -> dict[str, Part]:
        """The weight."""
        part = Part(tuple(self.weight.shape), self.weight, offset=self.offset, random_mean=1.0 - self.offset)
        return {f"{name}.weight": part}


class HeadNorm(RmsNorm):
    """Root-mean-square normalisation of every head by itself, with one weight for all (https://arxiv.org/abs/2302.05442)."""

    def normalise(self, heads: Tensor) -> None:
        """Heads [T, n, size], in place; rows may be strided."""
        heads.copy_(self(heads.reshape(-1, heads.shape[-1])).view(heads.shape))
