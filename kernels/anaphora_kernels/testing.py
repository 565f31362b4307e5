"""What the tests and benchmarks of all ops share: which implementations can run here, and how close is close."""

import torch
from torch import Tensor

from anaphora_kernels import registry

# Absolute and relative, for results of order 1.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float8_e4m3fn: 8e-2}

# Where the Triton kernels are tested: on a CPU they are interpreted.
TRITON_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def implementations(op: str, device_type: str = "cpu") -> list[tuple[str, torch.dtype]]:
    """(name, dtype of the activations): every implementation of `op` that the table lists for this device type."""
    return [
        (row.name, dtype)
        for row in registry.IMPLEMENTATIONS[op]
        if device_type in row.devices
        for dtype in sorted(row.dtypes & registry.FLOATS, key=str)
    ]


def assert_close(actual: Tensor, expected: Tensor, *, dtype: torch.dtype | None = None) -> None:
    """Equal in shape and dtype, and in value within the tolerance of `dtype`; the error reports the largest difference.

    `dtype` is that of `expected` unless something on the way was rounded to another.
    """
    tolerance = TOLERANCES[dtype or expected.dtype]
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise AssertionError(f"{actual.shape} {actual.dtype}, expected {expected.shape} {expected.dtype}")
    difference = (actual.float() - expected.float()).abs()
    if not bool((difference <= tolerance + tolerance * expected.float().abs()).all()):
        raise AssertionError(f"max_diff {difference.max().item():.3g}, tolerance {tolerance:.3g}")
