"""The product of activations and FP8 weights (e4m3, Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433).

    weight  is      values [out, in] FP8 * scales [out]       per channel; the scale of a whole tensor is repeated
    x       is made values [T, in] FP8 * scales [T]           per token, or by the one scale that a checkpoint brings
    out     is      (values @ values.T), summed in float32, * both scales, + bias

All four kinds of checkpoint (weights per tensor or per channel, activations static or dynamic) are this one product:
merged layers have a scale per part anyway.
"""

from torch import Tensor

from anaphora_kernels import registry
from anaphora_kernels.linear_fp8.weight import Fp8Rows, Fp8Weight, MixedFormatsError

__all__ = ["Fp8Rows", "Fp8Weight", "MixedFormatsError", "linear_fp8"]


def linear_fp8(
    x: Tensor,  # [T, in_features], contiguous
    weight: Tensor,  # [out_features, in_features] float8_e4m3fn, contiguous; both sizes multiples of 16
    weight_scales: Tensor,  # [out_features] float32
    bias: Tensor | None = None,  # [out_features], dtype of x
    *,
    input_scale: Tensor | None = None,  # [] float32; None: a scale per token
    implementation: str | None = None,
) -> Tensor:
    """x @ (weight * weight_scales).T + bias, with x rounded to FP8: [T, out_features], dtype of x."""
    run = registry.select("linear_fp8", x.device.type, x.dtype, implementation)
    out: Tensor = run(x, weight, weight_scales, bias, input_scale=input_scale)
    return out
