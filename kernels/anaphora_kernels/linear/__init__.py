"""The product of activations and a weight matrix as checkpoints have it, [out, in]."""

from torch import Tensor

from anaphora_kernels import registry


def linear(
    x: Tensor,  # [T, in_features], contiguous
    weight: Tensor,  # [out_features, in_features], contiguous, dtype of x
    bias: Tensor | None = None,  # [out_features]
    *,
    implementation: str | None = None,
) -> Tensor:
    """x @ weight.T + bias: [T, out_features], contiguous."""
    out: Tensor = registry.select("linear", x.device.type, x.dtype, implementation)(x, weight, bias)
    return out
