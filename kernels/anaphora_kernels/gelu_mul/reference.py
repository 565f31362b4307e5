"""gelu_mul in plain torch: the specification."""

import torch.nn.functional as F
from torch import Tensor


def gelu_mul(gate_up: Tensor) -> Tensor:
    """See `anaphora_kernels.gelu_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)
