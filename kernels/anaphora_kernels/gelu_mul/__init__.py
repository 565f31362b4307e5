"""The gate of a GeGLU MLP (Shazeer 2020, https://arxiv.org/abs/2002.05202), after one merged product."""

from torch import Tensor

from anaphora_kernels import registry


def gelu_mul(
    gate_up: Tensor,  # [T, 2 * intermediate]: gate, then up
    *,
    implementation: str | None = None,
) -> Tensor:
    """gelu(gate) * up: [T, intermediate], with the tanh form of GELU (Hendrycks 2016, https://arxiv.org/abs/1606.08415)."""
    out: Tensor = registry.select("gelu_mul", gate_up.device.type, gate_up.dtype, implementation)(gate_up)
    return out
