"""Activations between the products of an MLP."""

import anaphora_kernels
from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, of a merged [T, 2 * intermediate]."""
    return anaphora_kernels.silu_mul(gate_up)
