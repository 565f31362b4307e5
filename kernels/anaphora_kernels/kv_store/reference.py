"""kv_store in plain torch: the specification."""

import torch
from torch import Tensor


def kv_store(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    indices: Tensor,
    *,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> None:
    """See `anaphora_kernels.kv_store`."""
    if bool((indices < 0).any()):
        kept = indices >= 0
        key, value, indices = key[kept], value[kept], indices[kept]
    for x, cache, scale in ((key, key_cache, key_scale), (value, value_cache, value_scale)):
        if scale is None:
            cache.view(-1, *x.shape[1:]).index_copy_(0, indices, x)
        else:
            cells = cache.view(torch.uint8).view(-1, *x.shape[1:])  # torch copies bytes by index, not FP8
            cells.index_copy_(0, indices, quantise(x, scale, cache.dtype).view(torch.uint8))


def quantise(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x [T, heads, head_dim] / scale [heads] as FP8: saturated, rounded to the nearest, ties to even."""
    largest = torch.finfo(dtype).max
    return (x.float() / scale.view(-1, 1)).clamp(-largest, largest).to(dtype)
