"""linear_fp8 in plain torch: the specification."""

from torch import Tensor

from anaphora_kernels.quantize_fp8.reference import quantize_fp8


def linear_fp8(
    x: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None = None, *, input_scale: Tensor | None = None
) -> Tensor:
    """See `anaphora_kernels.linear_fp8`."""
    values, scales = quantize_fp8(x, input_scale)
    out = (values.float() @ weight.float().T) * scales * weight_scales
    if bias is not None:
        out = out + bias.float()
    return out.to(x.dtype)
