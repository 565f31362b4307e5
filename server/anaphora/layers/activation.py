"""Activations between the products of an MLP: gate_up [T, 2 * intermediate], merged -> [T, intermediate]."""

from collections.abc import Callable

import anaphora_kernels
from torch import Tensor

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": anaphora_kernels.silu_mul,  # silu(gate) * up
    "gelu": anaphora_kernels.gelu_mul,  # gelu(gate) * up, in the tanh form
}
