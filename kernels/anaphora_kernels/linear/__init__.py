"""The product of activations and a weight matrix: as checkpoints have it, [out, in], or packed for a CPU, or in FP8."""

from typing import TYPE_CHECKING

from torch import Tensor

from anaphora_kernels import registry
from anaphora_kernels.linear_fp8 import Fp8Weight, linear_fp8

if TYPE_CHECKING:
    from anaphora_kernels.linear.cpu import PackedWeight


def linear(
    x: Tensor,  # [T, in_features], contiguous
    weight: "Tensor | PackedWeight | Fp8Weight",  # [out_features, in_features], contiguous, dtype of x; or in any form
    bias: Tensor | None = None,  # [out_features], dtype of x
    *,
    implementation: str | None = None,
) -> Tensor:
    """x @ weight.T + bias: [T, out_features], contiguous."""
    if isinstance(weight, Fp8Weight):
        if weight.scales is not None:
            return linear_fp8(x, weight.values, weight.scales, bias, input_scale=weight.input_scale)
        weight = weight.values
    if implementation is None:
        implementation = "reference" if isinstance(weight, Tensor) else "cpu"
    out: Tensor = registry.select("linear", x.device.type, x.dtype, implementation)(x, weight, bias)
    return out
