"""The activation between the products of a gated MLP."""

import anaphora_kernels
from anaphora_kernels.gate_mul import Activation
from torch import Tensor


class Gate:
    """activation(gate) * up, of one merged product."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation

    def __call__(self, gate_up: Tensor) -> Tensor:
        """[T, gate then up] -> [T, intermediate]."""
        return anaphora_kernels.gate_mul(gate_up, self.activation)
