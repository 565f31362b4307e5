"""rms_norm in plain torch: the specification."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None) -> Tensor:
    """See `anaphora_kernels.rms_norm`."""
    if residual is not None:
        x = residual.add_(x)
    wide = x.to(torch.float32)
    normalised = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (weight * normalised.to(weight.dtype)).to(x.dtype)
