"""rope_kv_store on a CPU, by `kernels/native`."""

from anaphora import _native
from torch import Tensor

from anaphora_kernels.native_dtypes import NUMBERS


def rope_kv_store(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    indices: Tensor,
    *,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> None:
    """See `anaphora_kernels.rope_kv_store`; without FP8 there are no scales."""
    num_blocks, block_size, num_kv_heads, head_dim = key_cache.shape
    _native.rope_kv_store(
        NUMBERS[query.dtype],
        NUMBERS[key_cache.dtype],
        (query.data_ptr(), key.data_ptr(), value.data_ptr()),
        (query.stride(0), key.stride(0), value.stride(0)),
        (cos.data_ptr(), sin.data_ptr(), cos.shape[1]),
        (key_cache.data_ptr(), value_cache.data_ptr(), num_blocks * block_size),
        (indices.data_ptr(), len(indices)),
        (query.shape[1], num_kv_heads, head_dim),
    )
