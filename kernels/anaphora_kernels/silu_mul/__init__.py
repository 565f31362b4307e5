"""The gate of a SwiGLU MLP (Shazeer 2020, https://arxiv.org/abs/2002.05202), after one merged product."""

from torch import Tensor

from anaphora_kernels import registry


def silu_mul(
    gate_up: Tensor,  # [T, 2 * intermediate]: gate, then up
    *,
    implementation: str | None = None,
) -> Tensor:
    """silu(gate) * up: [T, intermediate]."""
    out: Tensor = registry.select("silu_mul", gate_up.device.type, gate_up.dtype, implementation)(gate_up)
    return out
