"""rope_kv_store in plain torch: the specification."""

from torch import Tensor

from anaphora_kernels.kv_store.reference import kv_store
from anaphora_kernels.rope.reference import rope


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
    """See `anaphora_kernels.rope_kv_store`."""
    rope(query, cos, sin)
    rope(key, cos, sin)
    kv_store(key, value, key_cache, value_cache, indices, key_scale=key_scale, value_scale=value_scale)
