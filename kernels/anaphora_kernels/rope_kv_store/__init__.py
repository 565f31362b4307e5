"""Rotating the queries and keys of a step and storing its keys and values: `rope` and `kv_store` in one pass."""

from torch import Tensor

from anaphora_kernels import registry


def rope_kv_store(
    query: Tensor,  # [T, num_heads, head_dim]; rows may be strided; written
    key: Tensor,  # [T, num_kv_heads, head_dim]; rows may be strided; undefined afterwards
    value: Tensor,  # like key; not changed
    cos: Tensor,  # [T, rotary_dim // 2], dtype of query; see anaphora_kernels.rope
    sin: Tensor,  # like cos
    key_cache: Tensor,  # [num_blocks, block_size, num_kv_heads, head_dim], contiguous; written
    value_cache: Tensor,  # like key_cache; written
    indices: Tensor,  # [T] int64: KV index of each token, all different; a negative one stores nothing
    *,
    key_scale: Tensor | None = None,  # [num_kv_heads] float32 > 0; with caches of float8_e4m3fn
    value_scale: Tensor | None = None,  # like key_scale
    implementation: str | None = None,
) -> None:
    """Rotates the queries in place; stores token t's rotated key and its value in cell `indices[t]`.

    See `anaphora_kernels.rope` and `anaphora_kernels.kv_store`: a rotated key is rounded to the dtype of the
    activations before it is stored.
    """
    run = registry.select("rope_kv_store", key.device.type, key_cache.dtype, implementation)
    scales = {"key_scale": key_scale, "value_scale": value_scale}
    run(query, key, value, cos, sin, key_cache, value_cache, indices, **scales)
