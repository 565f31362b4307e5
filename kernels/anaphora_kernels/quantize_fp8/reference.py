"""quantize_fp8 in plain torch: the specification."""

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float8_e4m3fn).max
SMALLEST_SCALE = 1e-12  # of a token that is zero


def quantize_fp8(x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `anaphora_kernels.quantize_fp8`."""
    wide = x.float()
    if scale is None:
        scales = (wide.abs().amax(dim=1, keepdim=True) / LARGEST).clamp_(min=SMALLEST_SCALE)
    else:
        scales = scale.view(1, 1).repeat(len(x), 1)
    return (wide / scales).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scales
