"""gate_mul in plain torch: the specification."""

import torch.nn.functional as F
from torch import Tensor

from anaphora_kernels.gate_mul import Activation


def gate_mul(gate_up: Tensor, activation: Activation) -> Tensor:
    """See `anaphora_kernels.gate_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    activated = F.gelu(gate, approximate="tanh") if activation == "gelu" else F.silu(gate)
    return activated.mul_(up)
