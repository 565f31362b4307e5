"""gate_mul in Triton: one pass over the merged product."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from anaphora_kernels.gate_mul import Activation

BLOCK = 1024


def gate_mul(gate_up: Tensor, activation: Activation) -> Tensor:
    """See `anaphora_kernels.gate_mul`."""
    gate_up = gate_up.contiguous()
    num_tokens, intermediate = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, intermediate), dtype=gate_up.dtype, device=gate_up.device)
    if num_tokens > 0:
        grid = (num_tokens, triton.cdiv(intermediate, BLOCK))
        gate_mul_rows[grid](gate_up, out, intermediate, IS_GELU=activation == "gelu", BLOCK=BLOCK, num_warps=4)
    return out


@triton.jit
def gate_mul_rows(gate_up, out, intermediate, IS_GELU: tl.constexpr, BLOCK: tl.constexpr):
    """A part of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < intermediate
    gate = tl.load(gate_up + row * 2 * intermediate + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * intermediate + column, mask=mask, other=0.0).to(tl.float32)
    if IS_GELU:  # the tanh form: (1 + tanh(z)) / 2 is sigmoid(2 z)
        activated = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        activated = gate * tl.sigmoid(gate)
    activated = activated.to(out.dtype.element_ty).to(tl.float32)  # as torch rounds between the two
    tl.store(out + row * intermediate + column, (activated * up).to(out.dtype.element_ty), mask=mask)
