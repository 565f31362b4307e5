"""Rows of a weight by index, whether the weight is as checkpoints have it or packed for a CPU."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anaphora_kernels import registry

if TYPE_CHECKING:
    from anaphora_kernels.linear.cpu import PackedWeight


def embedding(
    indices: Tensor,  # [T] int64, each below rows
    weight: "Tensor | PackedWeight",  # [rows, columns]
    dtype: torch.dtype,  # of the result; a tensor's own
    *,
    implementation: str | None = None,
) -> Tensor:
    """weight[indices]: [T, columns]."""
    if implementation is None:
        implementation = "reference" if isinstance(weight, Tensor) else "cpu"
    out: Tensor = registry.select("embedding", indices.device.type, dtype, implementation)(indices, weight, dtype)
    return out
