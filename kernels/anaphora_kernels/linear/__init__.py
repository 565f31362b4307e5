"""The product of activations and a weight matrix: as checkpoints have it, [out, in], or packed for a CPU."""

from typing import TYPE_CHECKING

from torch import Tensor

from anaphora_kernels import registry

if TYPE_CHECKING:
    from anaphora_kernels.linear.cpu import PackedWeight


def linear(
    x: Tensor,  # [T, in_features], contiguous
    weight: "Tensor | PackedWeight",  # [out_features, in_features], contiguous, dtype of x; or packed in any format
    bias: Tensor | None = None,  # [out_features], dtype of x
    *,
    implementation: str | None = None,
) -> Tensor:
    """x @ weight.T + bias: [T, out_features], contiguous."""
    if implementation is None:
        implementation = "reference" if isinstance(weight, Tensor) else "cpu"
    out: Tensor = registry.select("linear", x.device.type, x.dtype, implementation)(x, weight, bias)
    return out
