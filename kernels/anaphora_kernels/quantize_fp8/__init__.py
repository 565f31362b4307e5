"""Activations as FP8 (e4m3, Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433), for products in FP8.

A scale per token follows its largest value and depends on no other token of the step; a scale that a checkpoint brings
is one for all tokens.
"""

from torch import Tensor

from anaphora_kernels import registry


def quantize_fp8(
    x: Tensor,  # [T, n]
    scale: Tensor | None = None,  # [] float32 > 0: of all tokens; None: each its own, max |x| / 448
    *,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Values [T, n] float8_e4m3fn and scales [T, 1] float32: x is about values * scales.

    Divided by the scale, saturated at 448, rounded to the nearest.
    """
    run = registry.select("quantize_fp8", x.device.type, x.dtype, implementation)
    values, scales = run(x, scale)
    return values, scales
