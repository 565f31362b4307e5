"""linear_fp8 by `torch._scaled_mm`: cuBLAS or CUTLASS on a GPU, whatever this version of torch takes for the card.

Its results are bfloat16, the one type that scales per row have in every version: float32 has the reference. It sums a
whole product in the tensor cores' own accumulators (`use_fast_accum`), as is usual where nothing is trained.
"""

import torch
from torch import Tensor

from anaphora_kernels.quantize_fp8 import quantize_fp8


def linear_fp8(
    x: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None = None, *, input_scale: Tensor | None = None
) -> Tensor:
    """See `anaphora_kernels.linear_fp8`."""
    values, scales = quantize_fp8(x, input_scale)
    out = torch._scaled_mm(  # noqa: SLF001  # torch has no public name for it
        values,
        weight.T,
        scale_a=scales,
        scale_b=weight_scales.unsqueeze(0),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    ).to(x.dtype)
    return out if bias is None else out.add_(bias)
