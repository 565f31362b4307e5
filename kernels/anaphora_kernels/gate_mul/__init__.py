"""The gate of an MLP after one merged product: SwiGLU or GeGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

from typing import Literal

from torch import Tensor

from anaphora_kernels import registry

# gelu: in the tanh form (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415)
Activation = Literal["silu", "gelu"]


def gate_mul(
    gate_up: Tensor,  # [T, 2 * intermediate]: gate, then up
    activation: Activation,
    *,
    implementation: str | None = None,
) -> Tensor:
    """activation(gate) * up: [T, intermediate]. Between the two it is rounded to the dtype, as in torch."""
    run = registry.select("gate_mul", gate_up.device.type, gate_up.dtype, implementation)
    out: Tensor = run(gate_up, activation)
    return out
