"""rope in plain torch: the specification."""

from torch import Tensor


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """See `anaphora_kernels.rope`."""
    half = cos.shape[-1]
    a, b = x[..., :half], x[..., half : 2 * half]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    rotated_a = a * cos - b * sin
    rotated_b = b * cos + a * sin
    a.copy_(rotated_a)
    b.copy_(rotated_b)
