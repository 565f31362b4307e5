"""Copying whole blocks of the KV pool, all layers at once: what copy-on-write of a shared block comes down to."""

from torch import Tensor

from anaphora_kernels import registry


def copy_blocks(
    pool: Tensor,  # [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]; written
    sources: Tensor,  # [n] int64 block ids
    destinations: Tensor,  # [n] int64 block ids, all different; none of them a source
    *,
    implementation: str | None = None,
) -> None:
    """Copies block `sources[i]` over block `destinations[i]`, keys and values of every layer."""
    registry.select("copy_blocks", pool.device.type, pool.dtype, implementation)(pool, sources, destinations)
