"""Rotary position embedding, in place, in the half-split layout of Hugging Face checkpoints.

Su et al. 2021, https://arxiv.org/abs/2104.09864.

A head's vector is two halves (a, b); the pair (a[i], b[i]) is turned by the angle position * frequency[i]:

    a[i] <- a[i] * cos[i] - b[i] * sin[i]
    b[i] <- b[i] * cos[i] + a[i] * sin[i]

The frequencies, and whatever scales them for long contexts, are the caller's: it brings cosines and sines.
"""

from torch import Tensor

from anaphora_kernels import registry


def rope(
    x: Tensor,  # [T, heads, head_dim], head_dim even; rows may be strided; written
    cos: Tensor,  # [T, rotary_dim // 2], dtype of x; rotary_dim <= head_dim
    sin: Tensor,  # like cos
    *,
    implementation: str | None = None,
) -> None:
    """Rotates the first rotary_dim elements of each head by the angles of its token; the others stay.

    Queries and keys that lie side by side (one merged projection) are rotated by one call.
    """
    registry.select("rope", x.device.type, x.dtype, implementation)(x, cos, sin)
